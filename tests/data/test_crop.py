"""Random crops: inside, by key, and as torchvision makes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saga_ray.data.files.sources import FolderSource
from saga_ray.data.pixels.crop import cropped, random_crops, resized_crops
from saga_ray.data.pixels.images import augment, augmentation_keys
from saga_ray.data.planning.stream import decode_plan
from saga_ray.types import PairPlan
from tests.data.trees import picture, small_config


@given(st.integers(0, 100), st.floats(0.01, 1.0), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_crops_lie_inside_and_are_functions_of_their_key(seed, crop_area, height, width):
    keys_N = augmentation_keys(seed, 0, np.arange(12))
    boxes_N4 = random_crops(keys_N, height, width, crop_area)
    top, left, box_height, box_width = boxes_N4.T
    assert (top >= 0).all() and (left >= 0).all() and (box_height > 0).all() and (box_width > 0).all()
    assert (top + box_height <= height).all() and (left + box_width <= width).all()
    np.testing.assert_array_equal(random_crops(keys_N[[7, 3]], height, width, crop_area), boxes_N4[[7, 3]])


@pytest.mark.parametrize("crop_area", [0.08, 0.5])
def test_crops_are_distributed_as_torchvisions(crop_area):
    torch = pytest.importorskip("torch")
    from torchvision.transforms.v2 import RandomResizedCrop

    torch.manual_seed(0)
    image, draw = torch.zeros(3, 100, 100), RandomResizedCrop(100, scale=(crop_area, 1.0), antialias=True)
    theirs = [draw.make_params([image]) for _ in range(4000)]
    theirs_N4 = np.array([[box[side] for side in ("top", "left", "height", "width")] for box in theirs])
    ours_N4 = random_crops(augmentation_keys(0, 0, np.arange(4000)), 100, 100, crop_area)
    for theirs_N, ours_N in zip(theirs_N4.T, ours_N4.T, strict=True):
        assert abs(theirs_N.mean() - ours_N.mean()) < 1.2 and abs(theirs_N.std() - ours_N.std()) < 1.2
    share = [(boxes_N4[:, 2] * boxes_N4[:, 3]).mean() / 1e4 for boxes_N4 in (theirs_N4, ours_N4)]
    assert abs(share[0] - share[1]) < 0.015


def test_a_crop_is_resized_as_torchvision_resizes_it():
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    images = np.random.default_rng(0).integers(0, 256, size=(6, 31, 31, 3), dtype=np.uint8)
    boxes_N4 = random_crops(augmentation_keys(0, 0, np.arange(6)), 31, 31, 0.2)
    ours = resized_crops(images, boxes_N4)
    for image, box, crop in zip(images, boxes_N4.tolist(), ours, strict=True):
        twin = resized_crop(Image.fromarray(image), *box, size=[31, 31], interpolation=InterpolationMode.BICUBIC)
        np.testing.assert_array_equal(crop, np.asarray(twin))


def test_a_crop_of_the_whole_area_changes_nothing():
    images = np.random.default_rng(1).integers(0, 256, size=(3, 16, 16, 3), dtype=np.uint8)
    assert cropped(images, augmentation_keys(3, 1, np.arange(3)), 1.0) is images


def test_the_config_asks_for_crops(tmp_path):
    paths = tuple(picture(tmp_path / f"{i}.png", i).name for i in range(4))
    source, plan = FolderSource(paths, root=str(tmp_path)), PairPlan(index=5, rows=(3, 0, 3), pairs=())
    batch = decode_plan(source, np.zeros(4, np.int64), plan, small_config(tmp_path, crop_area=0.4), seed=2)
    keys_N = augmentation_keys(2, 5, np.array([3, 0, 3]))
    expected = augment(cropped(source.load([3, 0, 3], 16), keys_N, 0.4), keys_N, True, 0)
    np.testing.assert_array_equal(batch.images_NHWC, expected)
    plain = decode_plan(source, np.zeros(4, np.int64), plan, small_config(tmp_path), seed=2)
    assert (plain.images_NHWC != batch.images_NHWC).any()
