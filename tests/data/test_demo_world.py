import hashlib
import pickle
import time

import numpy as np
import pytest

from saga_ray.config import DataConfig
from saga_ray.data.demo import birds, demo_dataset, habitats, world


def _data(**changes) -> DataConfig:
    return DataConfig(image_size=64, **changes)


def test_a_picture_does_not_depend_on_the_rows_that_share_the_call() -> None:
    source = demo_dataset(_data()).train.source
    together = source.load(range(40), 64)
    for row in (0, 3, 17, 39):
        assert np.array_equal(source.load([row], 64)[0], together[row])
    assert np.array_equal(source.load([39, 3], 64), together[[39, 3]])


def test_a_pickled_source_draws_the_same_pictures_and_is_small() -> None:
    source = demo_dataset(_data(gap="filter")).test.source
    payload = pickle.dumps(source)
    assert len(payload) < 1000
    assert np.array_equal(pickle.loads(payload).load([5, 6], 64), source.load([5, 6], 64))


def test_splits_have_the_asked_sizes_and_no_class_twice() -> None:
    dataset = demo_dataset(_data())
    assert [len(dataset.split(name).class_names) for name in world.SPLITS] == [100, 40, 80]
    assert [len(dataset.split(name)) for name in world.SPLITS] == [3000, 800, 1600]
    vectors = np.concatenate([np.unique(dataset.split(name).truth_NA, axis=0) for name in world.SPLITS])
    assert len(np.unique(vectors, axis=0)) == 220
    ids = [i for name in world.SPLITS for i in dataset.split(name).image_ids]
    assert len(set(ids)) == 5400 and ids[123] == "demo-w0-train-000123"


def test_worlds_and_the_pool_of_the_mllm_share_no_attribute_vector() -> None:
    for seed in (0, 1, 2, 101, 102, 103):
        vectors = np.concatenate(world.class_vectors(seed, 4, (100, 40, 80), 5))
        assert not world.is_mllm_pool(vectors).any()
    rng = np.random.default_rng(0)
    assert world.is_mllm_pool(world.clean_batch(rng, 50)[1]).all()
    assert not world.is_mllm_pool(world.pool_vectors(rng, 50, pool=False)).any()


def test_the_hash_gives_about_half_of_all_vectors_to_the_pool() -> None:
    rng = np.random.default_rng(1)
    vectors = (rng.random((20000, 10)) * birds.NUM_VALUES).astype(int)
    assert abs(world.is_mllm_pool(vectors).mean() - 0.5) < 0.02


@pytest.mark.parametrize("distance", [2, 4, 6])
def test_neighbours_differ_in_exactly_the_asked_number_of_attributes(distance: int) -> None:
    for vectors in world.class_vectors(3, distance, (40, 12, 20), 0):
        for family in range(0, len(vectors), world.FAMILY_SIZE):
            members = vectors[family : family + world.FAMILY_SIZE]
            assert ((members[1:] != members[0]).sum(1) == distance).all()
        apart = (vectors[:, None] != vectors[None]).sum(-1) + 100 * np.eye(len(vectors), dtype=int)
        assert apart.min() >= distance


def test_too_many_classes_for_the_distance_is_one_sentence_with_the_keys() -> None:
    with pytest.raises(ValueError, match=r"data.num_classes: \(400, 20, 20\).*data.neighbour_distance=10"):
        demo_dataset(_data(neighbour_distance=10, num_classes=(400, 20, 20)))


def test_another_seed_draws_another_world() -> None:
    one, other = demo_dataset(_data(world_seed=0)), demo_dataset(_data(world_seed=1))
    assert one.fingerprint != other.fingerprint
    assert not np.array_equal(one.train.truth_NA, other.train.truth_NA)
    assert demo_dataset(_data(world_seed=0)).fingerprint == one.fingerprint


def _habitat_goes_with_class(split: str, confound: float) -> float:
    """Largest share of one habitat within a class, mean over classes."""
    spec = world.DemoWorld(confound=confound, num_images=(60, 60, 60))
    num_classes = spec.num_classes[world.SPLITS.index(split)]
    _, habitat = world.nuisance(spec, split, np.arange(num_classes * 60))
    counts = np.stack([np.bincount(row, minlength=len(habitats.NAMES)) for row in habitat.reshape(num_classes, 60)])
    return (counts.max(1) / 60).mean()


def test_confound_ties_habitat_to_training_classes_only() -> None:
    assert _habitat_goes_with_class("train", 1.0) == 1.0
    assert 0.55 < _habitat_goes_with_class("train", 0.5) < 0.7
    for split in ("validation", "test"):
        assert _habitat_goes_with_class(split, 1.0) == _habitat_goes_with_class(split, 0.0) < 0.35


def test_confound_ties_light_to_training_classes_only() -> None:
    def spread_of_light(split):
        spec = world.DemoWorld(confound=1.0)
        number = world.SPLITS.index(split)
        rows = np.arange(spec.num_classes[number] * spec.num_images[number])
        light = world.nuisance(spec, split, rows)[0][:, birds.LIGHT]
        return light.reshape(spec.num_classes[number], -1).std(1).mean()

    assert spread_of_light("train") < 0.1 < 0.25 < spread_of_light("test")


def test_family_members_live_apart_when_fully_confounded() -> None:
    _, habitat = world.nuisance(world.DemoWorld(confound=1.0), "train", np.arange(0, 3000, 30))
    for family in habitat.reshape(-1, world.FAMILY_SIZE):
        assert len(set(family)) == world.FAMILY_SIZE


def test_every_training_class_has_a_place_of_its_own_when_fully_confounded() -> None:
    columns = [birds.SCENE, birds.SCENE_X, birds.SCENE_Y]

    def widest(split: str, home: str) -> np.ndarray:
        number = world.SPLITS.index(split)
        spec = world.DemoWorld(home=home)
        parameters, _ = world.nuisance(spec, split, np.arange(spec.num_classes[number] * spec.num_images[number]))
        places = parameters[:, columns].reshape(spec.num_classes[number], spec.num_images[number], 3)
        return np.ptp(places, axis=1).max(0)

    assert widest("train", "place")[0] == 0 and widest("train", "place").max() <= 0.2
    first = world.nuisance(world.DemoWorld(), "train", np.arange(0, 3000, 30))[0][:, columns]
    assert len(np.unique(first.round(3), axis=0)) == 100
    assert widest("test", "place").min() > 0.9 and widest("train", "habitat").min() > 0.9


@pytest.mark.parametrize("tied", [0, 3, 5])
def test_attributes_follow_others_among_training_classes_only(tied: int) -> None:
    def follows(vectors: np.ndarray, follower: int, leader: int) -> bool:
        return len({(a, b) for a, b in vectors[:, [leader, follower]]}) == len(set(vectors[:, leader]))

    train, validation, test = world.class_vectors(0, 4, (100, 40, 80), tied)
    assert [follows(train, *pair) for pair in world._TIES] == [True] * tied + [False] * (5 - tied)
    assert not any(follows(vectors, *pair) for vectors in (validation, test) for pair in world._TIES)
    distance = (train[:, None] != train).sum(-1) + 10 * np.eye(len(train), dtype=int)
    assert distance.min() == 4


@pytest.mark.parametrize("gap", birds.GAPS)
def test_a_gap_changes_every_picture_and_no_attribute(gap: str) -> None:
    clean, shifted = demo_dataset(_data(shift=0.0)), demo_dataset(_data(shift=1.0, gap=gap))
    assert np.array_equal(clean.test.truth_NA, shifted.test.truth_NA)
    difference = np.abs(clean.test.source.load(range(32), 64).astype(int) - shifted.test.source.load(range(32), 64))
    assert difference.mean((1, 2, 3)).min() > 5


def test_a_whole_quarter_turn_is_the_clean_picture_turned() -> None:
    clean = demo_dataset(_data(shift=0.0)).test.source.load(range(8), 64).astype(int)
    turned = demo_dataset(_data(shift=1.0, gap="quarter-turn")).test.source.load(range(8), 64).astype(int)
    assert np.abs(np.rot90(clean, -1, (1, 2)) - turned).mean() < 6  # grain differs a little
    assert np.abs(clean - turned).mean() > 20


@pytest.mark.parametrize("gap", ["washed-out", "filter"])
def test_a_color_gap_is_one_map_of_colors_for_all_pictures(gap: str) -> None:
    """One affine map of the colours, fitted on some pictures, must explain the others but for grain and clipping."""
    clean = demo_dataset(_data(shift=0.0)).test.source.load(range(40), 64).astype(float)
    shifted = demo_dataset(_data(shift=0.7, gap=gap)).test.source.load(range(40), 64).astype(float)
    unclipped = ((clean > 2) & (clean < 253)).all(-1) & ((shifted > 2) & (shifted < 253)).all(-1)

    def pixels(pictures, which):
        chosen = pictures[which][unclipped[which]]
        return np.concatenate([chosen, np.ones((len(chosen), 1))], 1)

    some, others = slice(0, 20), slice(20, 40)
    map_34, *_ = np.linalg.lstsq(pixels(clean, some), pixels(shifted, some)[:, :3], rcond=None)
    error = pixels(clean, others) @ map_34 - pixels(shifted, others)[:, :3]
    assert np.sqrt((error**2).mean()) < 8


def test_washed_out_pictures_lose_saturation() -> None:
    def saturation(shift):
        pictures = demo_dataset(_data(shift=shift)).test.source.load(range(64), 64).astype(float)
        return (pictures.max(-1) - pictures.min(-1)).mean()

    assert saturation(0.0) > 2 * saturation(0.7)


def test_every_value_of_every_attribute_is_visible_at_64_pixels() -> None:
    rng = np.random.default_rng(2)
    base = world.pool_vectors(rng, 12)
    parameters = rng.random((12, birds.NUM_PARAMETERS))
    habitat = rng.integers(0, len(habitats.NAMES), 12)
    before = birds.draw(base, parameters, habitat).astype(int)
    for column, num_values in enumerate(birds.NUM_VALUES):
        for step in range(1, num_values):
            changed = base.copy()
            changed[:, column] = (base[:, column] + step) % num_values
            moved = np.abs(birds.draw(changed, parameters, habitat) - before).max(-1) > 24
            assert moved.sum((1, 2)).min() >= 4, (birds.NAMES[column], step)


def test_larger_pictures_show_the_same_bird() -> None:
    source = demo_dataset(_data(shift=0.0)).test.source
    small = source.load(range(4), 64).astype(float)
    large = source.load(range(4), 256).astype(float).reshape(4, 64, 4, 64, 4, 3).mean((2, 4))
    assert np.abs(small - large).mean() < 8


def test_pictures_have_not_changed_without_a_new_drawing_version() -> None:
    """Means over blocks, rounded, so that another processor's last bit does not matter."""
    assert birds.DRAWING_VERSION == 3
    world = _data(gap="filter+quarter-turn", shift=0.5, confound=0.5, home="habitat", tied=0)
    pictures = demo_dataset(world).train.source.load([0, 1, 2, 500, 2999], 64)
    blocks = pictures.reshape(5, 4, 16, 4, 16, 3).mean((2, 4))
    expected = np.load(__file__.replace("test_demo_world.py", "demo_blocks.npy"))
    assert np.abs(blocks - expected).max() < 0.5, hashlib.sha256(pictures.tobytes()).hexdigest()


def test_more_than_five_hundred_pictures_are_drawn_per_second_of_one_core() -> None:
    source = demo_dataset(_data()).train.source
    source.load(range(8), 64)
    start_s = time.process_time()
    source.load(range(512), 64)
    assert 512 / (time.process_time() - start_s) > 500  # about 3,000 on a quiet laptop core


@pytest.mark.parametrize("name", [name for name in birds.NAMES if name != "wing color"])  # back and tail take it too
def test_an_attribute_shows_where_its_parts_are_said_to_be(name: str) -> None:
    """Changing one attribute's value changes pixels in its cells, and hardly any elsewhere."""
    rng, column, cells = np.random.default_rng(3), birds.NAMES.index(name), 16
    first = (rng.random((24, len(birds.NAMES))) * birds.NUM_VALUES).astype(int)
    second = first.copy()
    second[:, column] = (first[:, column] + 1) % birds.NUM_VALUES[column]
    parameters, habitat = rng.random((24, birds.NUM_PARAMETERS)), rng.integers(0, 5, 24)
    pictures = [birds.draw(vectors, parameters, habitat, 64).astype(int) for vectors in (first, second)]
    changed = np.abs(pictures[0] - pictures[1]).sum(-1).reshape(24, cells, 4, cells, 4).sum((2, 4))
    shown = sum(birds.parts(vectors, parameters, cells, points=64)[:, column] for vectors in (first, second))
    # Outlines and smoothed rims reach a pixel further than the part itself.
    near = sum(np.roll(shown, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) > 0
    assert near.mean() < 0.5 and changed.sum() > 0
    assert changed[~near].sum() < 0.03 * changed.sum()


def test_two_neighbours_are_shown_clean_or_as_the_world_shows_them() -> None:
    data = DataConfig(image_size=32, shift=0.4)
    table = demo_dataset(data).test
    for seed in range(3):
        (shown, truths), (clean, same) = (world.two_neighbours(data, seed, clean=each) for each in (False, True))
        assert truths == same and len(truths) == 2
        assert shown.shape == clean.shape == (2, 32, 32, 3)
        assert np.abs(shown.astype(int) - clean).mean() > 5
        firsts = np.unique(table.labels_N, return_index=True)[1]
        pictures = table.source.load(firsts, 32)
        found = [int(np.flatnonzero((pictures == each).all((1, 2, 3)))[0]) for each in shown]
        assert found[1] == found[0] + 1 and found[0] % world.FAMILY_SIZE == 0
        for label, truth in zip(found, truths, strict=True):
            values = zip(birds.ATTRIBUTES.items(), table.truth_NA[firsts[label]], strict=True)
            assert truth == {name: of[value] for (name, of), value in values}
