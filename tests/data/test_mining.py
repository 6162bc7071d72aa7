"""Groups of confusable classes, against slow obvious twins."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_ray.config import DataConfig
from saga_ray.configure import ConfigError, resolve
from saga_ray.data import load_dataset
from saga_ray.data.planning.mining import CentroidNeighbours, IndexedNeighbours, snapshot_rows
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.data.planning.taxonomy import TaxonomyNeighbours, lineages_of
from tests.data.trees import inat_tree

INAT = "{:05d}_Animalia_Chordata_Aves_{}_{}_{}_{}"


def slow_groups(centroids_CE, order, num_groups, width):
    """One class after the other, each compared with all that are free."""
    unit_CE = centroids_CE / np.linalg.norm(centroids_CE, axis=1, keepdims=True)
    grid_CE = np.rint(unit_CE * 2.0**20)
    free, groups = list(order), []
    for _ in range(num_groups):
        head = free.pop(0)
        similarity = np.array([grid_CE[head] @ grid_CE[label] for label in free])
        mates = [free[i] for i in np.argsort(-similarity, kind="stable")[: width - 1]]
        free = [label for label in free if label not in mates]
        groups.append([head, *mates])
    return np.array(groups).reshape(num_groups, width), np.array(free, dtype=np.int64)


@st.composite
def orders(draw):
    num_classes, width = draw(st.integers(2, 40)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    order = rng.permutation(num_classes)[: draw(st.integers(0, num_classes))]
    return num_classes, order, draw(st.integers(0, len(order) // width)), width, rng


@given(orders(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_neighbours_equal_the_slow_twin_also_with_ties(case, ties):
    num_classes, order, num_groups, width, rng = case
    centroids_CE = rng.integers(1, 3, (num_classes, 3)).astype(float) if ties else rng.normal(size=(num_classes, 6))
    groups, left = CentroidNeighbours(centroids_CE).groups(order, num_groups, width)
    expected, expected_left = slow_groups(centroids_CE, order, num_groups, width)
    np.testing.assert_array_equal(groups, expected)
    np.testing.assert_array_equal(left, expected_left)


def test_blocks_of_any_size_give_the_same_groups(monkeypatch):
    rng = np.random.default_rng(3)
    centroids_CE, order = rng.normal(size=(97, 8)), rng.permutation(97)[:90]
    whole = CentroidNeighbours(centroids_CE).groups(order, 20, 4)
    for classes_at_once in (1, 3, 7):
        monkeypatch.setattr("saga_ray.data.planning.mining._BLOCK_BYTES", classes_at_once * 8 * 97)
        for one, other in zip(CentroidNeighbours(centroids_CE).groups(order, 20, 4), whole, strict=True):
            np.testing.assert_array_equal(one, other)


@given(orders())
@settings(max_examples=60, deadline=None)
def test_an_index_that_looks_at_all_lists_finds_the_exact_neighbours(case):
    num_classes, order, num_groups, width, rng = case
    # Few dimensions of whole numbers: rounding to the coarser grid moves no neighbour past another.
    centroids_CE = rng.normal(size=(num_classes, 3))
    groups, left = IndexedNeighbours(centroids_CE).groups(order, num_groups, width)
    assert sorted([*groups.ravel(), *left]) == sorted(order), "no class twice, none lost"
    assert left.tolist() == [label for label in order if label in set(left.tolist())]
    unit_CE = centroids_CE / np.linalg.norm(centroids_CE, axis=1, keepdims=True)
    free = order.tolist()
    for group in groups:
        assert group[0] == free.pop(0)
        nearest = np.sort(unit_CE[free] @ unit_CE[group[0]])[::-1][: width - 1]
        np.testing.assert_allclose(unit_CE[group[1:]] @ unit_CE[group[0]], nearest, atol=2e-3)
        free = [label for label in free if label not in group]


def families(num_classes: int, num_kin: int, width: int, noise: float) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(num_classes // num_kin, width)).repeat(num_kin, axis=0)
    return centres + noise * np.random.default_rng(1).normal(size=centres.shape)


def test_with_thirty_thousand_classes_the_index_finds_the_families_within_seconds():
    centroids_CE = families(30_000, 5, 64, 0.3).astype(np.float32)
    order = np.random.default_rng(2).permutation(30_000)
    began = time.process_time()
    groups, left = IndexedNeighbours(centroids_CE).groups(order, 1000, 4)
    assert time.process_time() - began < 30
    kin = groups // 5
    assert (kin == kin[:, :1]).all(axis=1).mean() > 0.95
    assert len(left) == 26_000


def test_a_plan_of_very_many_classes_goes_through_the_index_and_copies_without_it(monkeypatch):
    import pickle

    monkeypatch.setattr("saga_ray.data.planning.mining.EXACT_CLASSES", 100)
    labels_N = np.repeat(np.arange(200), 3)
    centroids_CE = families(200, 4, 16, 0.01)
    planner = PairPlanner(labels_N, DataConfig(hard_share=0.25), 0, centroids_CE)
    plan = planner.plan(3)
    assert isinstance(planner._neighbours, IndexedNeighbours)
    assert pickle.loads(pickle.dumps(planner)).plan(3) == plan
    kin = np.concatenate([planner._shards_of_round(0) // 4])
    assert (kin == kin[:, :1]).all(axis=1).mean() == pytest.approx(0.25)


def slow_relatives(lineages, order, num_groups, width):
    """Free classes sorted by how many groups they share with the head, one head after the other."""
    free, groups = list(order), []
    for _ in range(num_groups):
        head = free.pop(0)

        def shared(label, head=head):
            levels = zip(lineages[label], lineages[head], strict=False)
            return next(
                (i for i, (a, b) in enumerate(levels) if a != b), min(map(len, (lineages[label], lineages[head])))
            )

        mates = sorted(free, key=lambda label: -shared(label))[: width - 1]
        free = [label for label in free if label not in mates]
        groups.append([head, *mates])
    return np.array(groups).reshape(num_groups, width), np.array(free, dtype=np.int64)


@given(orders())
@settings(max_examples=80, deadline=None)
def test_relatives_equal_the_slow_twin(case):
    num_classes, order, num_groups, width, rng = case
    lineages = [tuple(map(str, rng.integers(0, 3, rng.integers(1, 4)))) for _ in range(num_classes)]
    groups, left = TaxonomyNeighbours(lineages).groups(order, num_groups, width)
    expected, expected_left = slow_relatives(lineages, order, num_groups, width)
    np.testing.assert_array_equal(groups, expected)
    np.testing.assert_array_equal(left, expected_left)


def test_inaturalists_names_are_a_taxonomy():
    names = [
        INAT.format(4464, "Accipitriformes", "Accipitridae", "Accipiter", "badius"),
        INAT.format(3111, "Anseriformes", "Anatidae", "Anas", "platyrhynchos-x_y"),
    ]
    assert lineages_of(names[:1], None) == [
        ("Animalia", "Chordata", "Aves", "Accipitriformes", "Accipitridae", "Accipiter")
    ]
    with pytest.raises(ValueError, match=r"data\.hard_from: taxonomy needs names .* 1 of 2 .*owl.*data\.taxonomy"):
        lineages_of([names[0], "owl"], None)


def test_a_users_tree_of_any_depth_is_read_and_its_mistakes_are_named(tmp_path):
    path = tmp_path / "kin.yaml"
    path.write_text("ducks:\n  dabbling: [Mallard, Gadwall]\n  diving: [Pochard]\nowls: [Barn owl, 7]\n")
    assert lineages_of(["Gadwall", "Barn owl", "7"], path) == [("ducks", "dabbling"), ("owls",), ("owls",)]
    with pytest.raises(
        ValueError, match=r"data\.taxonomy: .*kin\.yaml has no place for 1 of 2 training classes \(Wren\)"
    ):
        lineages_of(["Wren", "7"], path)
    path.write_text("ducks:\n  dabbling: Mallard\n")
    with pytest.raises(ValueError, match="'ducks / dabbling' holds str where a list"):
        lineages_of(["Mallard"], path)
    with pytest.raises(ConfigError, match="cannot be read"):
        lineages_of(["Mallard"], tmp_path / "none.yaml")


def test_a_taxonomy_that_would_not_be_read_is_a_mistake():
    with pytest.raises(
        ConfigError, match=r"data\.taxonomy: kin\.yaml would not be read with data\.hard_from=embeddings"
    ):
        resolve("demo", overrides={"data.taxonomy": "kin.yaml"})


def test_a_run_goes_on_with_the_taxonomy_that_it_began_with(tmp_path):
    from saga_ray.data.planning.taxonomy import relatives
    from saga_ray.train.evaluate import config_hash
    from saga_ray.train.run_folder import changed_values

    def config(path, **more):
        return resolve("demo", overrides={"data.hard_from": "taxonomy", "data.taxonomy": str(path), **more})

    path, moved = tmp_path / "kin.yaml", tmp_path / "moved.yaml"
    for place in (path, moved):
        place.write_text("ducks: [Mallard, Gadwall]\nowls: [Barn owl]\n")
    before = config(path)
    assert config(moved).data.taxonomy_digest == before.data.taxonomy_digest
    assert config_hash(config(moved)) == config_hash(before)
    assert relatives(before.data, ["Mallard", "Barn owl"]) is not None
    path.write_text("ducks: [Mallard]\nowls: [Barn owl, Gadwall]\n")
    with pytest.raises(ValueError, match=r"data\.taxonomy: .*kin\.yaml is not the file that the run began with"):
        relatives(before.data, ["Mallard", "Barn owl"])
    assert list(changed_values(before, config(path))) == ["data.taxonomy_digest"]
    assert config_hash(config(path)) != config_hash(before)
    with pytest.raises(ConfigError, match=r"data\.taxonomy_digest: 0123456789ab is not that of .*kin\.yaml"):
        config(path, **{"data.taxonomy_digest": "0123456789ab"})
    with pytest.raises(ConfigError, match=r"data\.taxonomy: .*none\.yaml cannot be read \(No such file"):
        config(tmp_path / "none.yaml")


def test_hard_shards_of_an_inat_tree_are_families_and_no_pair_touches_another_split(tmp_path):
    from saga_ray.data.planning.taxonomy import relatives

    species = [INAT.format(3000 + i, "O", f"F{i // 8}", f"G{i // 4}", f"s{i}") for i in range(48)]
    inat_tree(tmp_path, species, num_images=4)
    config = resolve(
        "inat-aves",
        recipe="demo",
        overrides={
            "data.root": str(tmp_path), "data.verify_counts": False, "data.hard_from": "taxonomy",
            "data.classes_per_batch": 8, "data.num_shards": 2, "data.images_per_class": 2, "data.pairs_per_batch": 8,
            "data.validation_share": 0.2, "data.image_size": 16,
        },
    )  # fmt: skip
    dataset = load_dataset(config)
    table = dataset.train
    planner = PairPlanner(table.labels_N, config.data, 0, None, relatives(config.data, table.class_names))
    elsewhere = {*dataset.validation.image_ids, *dataset.test.image_ids}
    num_families = np.zeros(2, dtype=int)
    for index in range(8 * planner.batches_per_round):
        plan = planner.plan(index)
        assert not elsewhere & {table.image_ids[row] for row in plan.rows}
        labels = table.labels_N[list(plan.rows)].reshape(2, 4, 2)[:, :, 0]
        num_families += [len({table.class_names[label].split("_")[5] for label in shard}) for shard in labels]
    random, hard = num_families
    assert hard < 0.7 * random, "the second shard of two holds relatives"


def test_a_snapshot_takes_so_many_images_of_every_class():
    labels_N = np.random.default_rng(0).permutation(np.repeat(np.arange(9), [2, 3, 4, 5, 6, 7, 8, 9, 20]))
    np.testing.assert_array_equal(snapshot_rows(labels_N, None, 0), np.arange(64))
    rows_N = snapshot_rows(labels_N, 4, 0)
    assert np.bincount(labels_N[rows_N]).tolist() == [2, 3, 4, 4, 4, 4, 4, 4, 4]
    assert (np.diff(rows_N) > 0).all()
    np.testing.assert_array_equal(rows_N, snapshot_rows(labels_N, 4, 0))
    assert rows_N.tolist() != snapshot_rows(labels_N, 4, 1).tolist()


def test_ten_million_images_are_planned_within_seconds():
    num_classes = 50_000
    labels_N = np.random.default_rng(0).permutation(np.repeat(np.arange(num_classes), 200))
    began = time.process_time()
    planner = PairPlanner(labels_N, DataConfig(), 0, families(num_classes, 5, 16, 0.1))
    plan = planner.plan(10_000)
    assert time.process_time() - began < 60
    assert len(set(plan.rows)) == 64 and len(plan.pairs) == 16
