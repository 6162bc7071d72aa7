"""Properties of the pair plan."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_ray.config import DataConfig
from saga_ray.configure import resolve
from saga_ray.data import load_dataset
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.data.planning.taxonomy import TaxonomyNeighbours


@st.composite
def settings_and_labels(draw):
    num_shards = draw(st.sampled_from([1, 2, 4]))
    width = draw(st.integers(2, 4))
    images_per_class = draw(st.integers(2, 5))
    data = DataConfig(
        classes_per_batch=num_shards * width,
        images_per_class=images_per_class,
        num_shards=num_shards,
        pairs_per_batch=num_shards * draw(st.integers(1, 6)),
        hard_share=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
    )
    num_classes = num_shards * width + draw(st.integers(0, 11))
    counts = draw(st.lists(st.integers(2, 13), min_size=num_classes, max_size=num_classes))
    labels_N = np.random.default_rng(draw(st.integers(0, 99))).permutation(np.repeat(np.arange(num_classes), counts))
    rng = np.random.default_rng(7)
    how = draw(st.sampled_from(["random", "embeddings", "taxonomy"]))
    if how == "embeddings":
        return data, labels_N, {"class_centroids": rng.normal(size=(num_classes, 5))}
    if how == "taxonomy":
        return data, labels_N, {"neighbours": TaxonomyNeighbours(rng.integers(0, 4, (num_classes, 2)).astype(str))}
    return data, labels_N, {}


@given(settings_and_labels(), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_after_whole_rounds_classes_are_seen_equally_often_to_within_one(case, num_rounds):
    data, labels_N, hard = case
    planner = PairPlanner(labels_N, data, seed=3, **hard)
    seen = Counter({label: 0 for label in range(planner.num_classes)})
    for index in range(num_rounds * planner.batches_per_round):
        labels = labels_N[list(planner.plan(index).rows)].reshape(-1, data.images_per_class)
        assert (labels == labels[:, :1]).all(), "images of a class stand together"
        assert len(set(labels[:, 0])) == data.classes_per_batch, "no class twice in a micro-batch"
        seen.update(labels[:, 0].tolist())
    assert max(seen.values()) - min(seen.values()) <= 1


@given(settings_and_labels(), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_at_any_moment_images_of_a_class_are_seen_equally_often_to_within_one_and_classes_to_within_two(case, stop):
    data, labels_N, hard = case
    planner = PairPlanner(labels_N, data, seed=5, **hard)
    seen_N = np.zeros(len(labels_N), dtype=int)
    classes_C = np.zeros(planner.num_classes, dtype=int)
    for index in range(stop):
        rows = np.array(planner.plan(index).rows)
        np.add.at(seen_N, rows, 1)
        np.add.at(classes_C, labels_N[rows][:: data.images_per_class], 1)
        for label in set(labels_N[rows]):
            of_class = rows[labels_N[rows] == label]
            num_images = (labels_N == label).sum()
            repeats = Counter(of_class.tolist()).values()
            if num_images >= data.images_per_class:
                assert max(repeats) == 1, "no image twice in a micro-batch"
            else:
                assert len(repeats) == num_images and max(repeats) - min(repeats) <= 1, "all of a small class"
    for label in range(planner.num_classes):
        of_class = seen_N[labels_N == label]
        assert of_class.max() - of_class.min() <= 1
    assert classes_C.max() - classes_C.min() <= 2


@given(settings_and_labels(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_ranks_one_after_the_other_give_the_micro_batch_of_one_rank(case, index):
    data, labels_N, hard = case
    planner = PairPlanner(labels_N, data, seed=1, **hard)
    whole = planner.plan(index)
    for world_size in [w for w in (1, 2, 4) if data.num_shards % w == 0]:
        parts = [planner.plan(index, rank, world_size) for rank in range(world_size)]
        assert sum((part.rows for part in parts), ()) == whole.rows
        offset, pairs = 0, []
        for part in parts:
            pairs += [(p.first + offset, p.second + offset, p.same_class, p.number) for p in part.pairs]
            offset += len(part.rows)
        expected = [(p.first, p.second, p.same_class, p.number) for p in whole.pairs]
        assert sorted(pairs, key=lambda pair: pair[3]) == expected


@given(settings_and_labels(), st.lists(st.integers(0, 200), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_plan_does_not_depend_on_what_was_asked_before_nor_on_the_process(case, indices):
    data, labels_N, hard = case
    planner = PairPlanner(labels_N, data, seed=2, **hard)
    copied = pickle.loads(pickle.dumps(planner))
    in_order = {index: planner.plan(index) for index in indices}
    for index in reversed(indices):
        assert copied.plan(index) == in_order[index]
        assert PairPlanner(labels_N, data, seed=2, **hard).plan(index) == in_order[index]


@given(settings_and_labels(), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_pairs_stay_in_their_shard_are_balanced_and_numbered_once(case, index):
    data, labels_N, hard = case
    planner = PairPlanner(labels_N, data, seed=4, **hard)
    balance = 0
    for at in (index, index + 1):
        plan = planner.plan(at)
        assert [pair.number for pair in plan.pairs] == list(range(data.pairs_per_batch))
        images_per_shard = data.batch_size // data.num_shards
        for pair in plan.pairs:
            assert pair.first // images_per_shard == pair.second // images_per_shard == pair.number % data.num_shards
            first, second = plan.rows[pair.first], plan.rows[pair.second]
            assert first != second
            assert (labels_N[first] == labels_N[second]) == pair.same_class
        here = sum(1 if pair.same_class else -1 for pair in plan.pairs)
        assert abs(here) <= 1
        balance += here
    assert balance == 0


def test_no_pair_is_shown_twice_while_there_are_others():
    data = DataConfig(classes_per_batch=8, images_per_class=4, num_shards=2, pairs_per_batch=80)
    planner = PairPlanner(np.repeat(np.arange(20), 6), data, seed=0)
    pairs = [frozenset((pair.first, pair.second)) for pair in planner.plan(0).pairs]
    assert len(set(pairs)) == 80


def test_hard_shards_hold_a_class_and_its_nearest_unused_neighbours():
    data = DataConfig(classes_per_batch=8, images_per_class=2, num_shards=2, pairs_per_batch=4, hard_share=0.5)
    labels_N = np.repeat(np.arange(64), 3)
    # 16 families of 4 classes: nearest neighbours are the family.
    families = np.random.default_rng(0).normal(size=(16, 8)).repeat(4, axis=0)
    centroids = families + 1e-3 * np.random.default_rng(1).normal(size=(64, 8))
    planner = PairPlanner(labels_N, data, seed=0, class_centroids=centroids)
    num_hard = 0
    for index in range(planner.batches_per_round):
        labels = labels_N[list(planner.plan(index).rows)].reshape(2, 4, 2)[:, :, 0]
        num_hard += sum(len(set(shard // 4)) == 1 for shard in labels)
    assert num_hard == planner.batches_per_round, "one shard of two"


def test_hard_shards_equal_a_slow_twin():
    data = DataConfig(classes_per_batch=6, images_per_class=2, num_shards=2, pairs_per_batch=4, hard_share=1.0)
    labels_N = np.repeat(np.arange(15), 2)
    centroids = np.random.default_rng(2).normal(size=(15, 4))
    planner = PairPlanner(labels_N, data, seed=9, class_centroids=centroids)
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    for first_index in (0, 2, 4):
        shards = [
            labels_N[list(planner.plan(first_index + i).rows)].reshape(2, 3, 2)[s, :, 0]
            for i in range(2)
            for s in range(2)
        ]
        unused = set(np.concatenate(shards).tolist())
        for first, *others in shards:
            unused.remove(first)
            nearest = sorted(unused, key=lambda label: -(unit[label] @ unit[first]))[:2]
            assert others == nearest
            unused -= set(nearest)


def test_without_a_snapshot_hard_share_changes_nothing():
    labels_N = np.repeat(np.arange(40), 5)
    plans = [PairPlanner(labels_N, DataConfig(hard_share=share), seed=0).plan(3) for share in (0.0, 1.0)]
    assert plans[0] == plans[1]


def test_seeds_and_rounds_differ():
    labels_N = np.repeat(np.arange(40), 5)
    planner = PairPlanner(labels_N, DataConfig(), seed=0)
    assert planner.plan(0).rows != PairPlanner(labels_N, DataConfig(), seed=1).plan(0).rows
    assert planner.plan(0).rows != planner.plan(planner.batches_per_round).rows


def test_too_few_classes_names_key_number_and_what_to_set():
    with pytest.raises(ValueError, match=r"data\.classes_per_batch: 16 is more than the 9 training classes") as caught:
        PairPlanner(np.repeat(np.arange(9), 4), DataConfig(), seed=0)
    assert str(caught.value).endswith("set data.classes_per_batch=8")
    with pytest.raises(ValueError, match=r"set data\.classes_per_batch=4 and data\.num_shards=2"):
        PairPlanner(np.repeat(np.arange(5), 4), DataConfig(), seed=0)
    PairPlanner(np.repeat(np.arange(5), 4), DataConfig(classes_per_batch=4, num_shards=2), seed=0).plan(0)


def test_a_class_with_one_image_is_refused():
    with pytest.raises(ValueError, match="training class number 3 has 1 image"):
        PairPlanner(np.array([0, 0, 1, 1, 2, 2, 3, 4, 4]), DataConfig(classes_per_batch=4, num_shards=2), seed=0)


@pytest.mark.parametrize("hard", ["random", "embeddings", "taxonomy"])
def test_with_743_uneven_classes_all_is_seen_equally_often_and_pairs_are_balanced(hard):
    rng = np.random.default_rng(0)
    labels_N = rng.permutation(np.repeat(np.arange(743), rng.integers(2, 60, 743)))
    how = {
        "random": {},
        "embeddings": {"class_centroids": rng.normal(size=(743, 32))},
        "taxonomy": {"neighbours": TaxonomyNeighbours([(str(i // 40), str(i // 5)) for i in range(743)])},
    }[hard]
    planner = PairPlanner(labels_N, DataConfig(), 0, **how)
    seen_N, same = np.zeros(len(labels_N), dtype=int), 0
    for index in range(3 * planner.batches_per_round):
        plan = planner.plan(index)
        np.add.at(seen_N, list(plan.rows), 1)
        same += sum(pair.same_class for pair in plan.pairs)
    per_class = np.bincount(labels_N, weights=seen_N) / 4
    assert per_class.max() - per_class.min() <= 1
    for label in range(743):
        assert np.ptp(seen_N[labels_N == label]) <= 1
    assert same == 3 * planner.batches_per_round * 8


def digest(planner: PairPlanner, stop: int, world_size: int = 1) -> str:
    """SHA-256 over everything that the first micro-batches say."""
    whole = hashlib.sha256()
    for index in range(stop):
        for rank in range(world_size):
            plan = planner.plan(index, rank, world_size)
            pairs = [(p.first, p.second, p.same_class, p.number) for p in plan.pairs]
            whole.update(repr((plan.index, plan.rows, pairs)).encode())
    return whole.hexdigest()[:16]


@pytest.mark.parametrize(
    ("world_size", "random", "hard"),
    [
        (1, "f31a3033c2aef540", "5d0d6a6639b30aed"),
        (2, "889e55b696f7617e", "e75ed1c5b94ec063"),
        (4, "0c58dc7e6af2d865", "280c89bffb719cd1"),
    ],
)
def test_the_demo_plan_is_what_it_always_was(world_size, random, hard):
    config = resolve("demo")
    labels_N = load_dataset(config).train.labels_N
    centroids = np.random.default_rng(7).normal(size=(100, 32))
    assert digest(PairPlanner(labels_N, config.data, 0, None), 20, world_size) == random
    assert digest(PairPlanner(labels_N, config.data, 0, centroids), 20, world_size) == hard


def test_a_plan_of_uneven_classes_is_what_it_always_was():
    counts = np.random.default_rng(2).integers(2, 15, 57)
    labels_N = np.random.default_rng(1).permutation(np.repeat(np.arange(57), counts))
    data = DataConfig(hard_share=1.0, classes_per_batch=12, images_per_class=3)
    centroids = np.random.default_rng(8).normal(size=(57, 8))
    assert digest(PairPlanner(labels_N, data, 3, centroids), 30) == "9090e78a157c6f51"
