"""Duplicates: the fast search equals comparing all with all; the hash tells copies from other pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from saga_ray.data.inspect.duplicates import FLAT, MAX_DISTANCE, equal_files, near_duplicates, perceptual_hash


def all_with_all(hashes: list[int], groups: list[int], max_distance: int) -> list[tuple[int, int, int]]:
    """The slow twin of `near_duplicates`."""
    found = []
    for i, a in enumerate(hashes):
        others = [
            ((a ^ b).bit_count(), j)
            for j, b in enumerate(hashes)
            if groups[i] != groups[j] and FLAT not in (a, b) and (a ^ b).bit_count() <= max_distance
        ]
        if others:
            distance, nearest = min(others)
            found.append((i, nearest, distance))
    pairs = {(i, j) for i, j, _ in found}
    return [(i, j, distance) for i, j, distance in found if i < j or (j, i) not in pairs]


@st.composite
def crowded_hashes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Hashes around a few centres, so that many are near each other, some equal and some flat."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    centres = generator.integers(0, 2**63, size=draw(st.integers(1, 5))).tolist()
    hashes = []
    for _ in range(draw(st.integers(0, 60))):
        value = int(centres[generator.integers(len(centres))])
        for bit in generator.choice(64, generator.integers(0, 7), replace=False):
            value ^= 1 << int(bit)
        hashes.append(value if generator.random() > 0.1 else FLAT)
    return hashes, generator.integers(0, 3, len(hashes)).tolist()


@settings(max_examples=60, deadline=None)
@given(crowd=crowded_hashes(), max_distance=st.integers(0, 7))
def test_bands_find_what_comparing_all_with_all_finds(crowd: tuple[list[int], list[int]], max_distance: int) -> None:
    hashes, groups = crowd
    assert near_duplicates(hashes, np.array(groups, int), max_distance) == all_with_all(hashes, groups, max_distance)


def test_one_picture_everywhere_costs_no_square_of_answers() -> None:
    near = near_duplicates([12345] * 20_000, np.arange(20_000) % 2)
    assert near[0] == (0, 1, 0) and len(near) == 19_999
    assert {other for _, other, _ in near} == {0, 1}


def test_images_of_one_group_are_no_duplicates_of_each_other() -> None:
    assert near_duplicates([7, 7, 7], np.zeros(3, int)) == []
    assert near_duplicates([], np.zeros(0, int)) == []


def test_equal_files_stand_in_groups() -> None:
    assert equal_files([b"a", b"b", b"a", b"c", b"b", b"a"]) == [[0, 2, 5], [1, 4]]


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Parts of two photographs that scikit-learn brings along."""
    return [
        Image.fromarray(photograph[top : top + 200, left : left + 200])
        for photograph in load_sample_images().images
        for top in (0, 200)
        for left in (0, 200, 400)
    ]


def again(image: Image.Image, quality: int, size: int) -> Image.Image:
    stream = io.BytesIO()
    image.resize((size, size), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def test_copies_are_near_and_other_photographs_are_not(photographs: list[Image.Image]) -> None:
    hashes = [perceptual_hash(image) for image in photographs]
    for image, value in zip(photographs, hashes, strict=True):
        for copy in (again(image, 60, 200), again(image, 90, 140), again(image, 80, 400), image.convert("L")):
            assert (perceptual_hash(copy) ^ value).bit_count() <= MAX_DISTANCE
    others = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(others) > 2 * MAX_DISTANCE


def test_the_hash_is_that_of_a_plain_cosine_transform(photographs: list[Image.Image]) -> None:
    from scipy.fft import dctn

    for image in photographs:
        grey_HW = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR), float)
        low = dctn(grey_HW)[:8, :8].ravel()
        bits = "".join("1" if value > np.median(low) else "0" for value in low)
        assert perceptual_hash(image) == int(bits, 2)


def test_flat_pictures_have_no_hash() -> None:
    assert perceptual_hash(Image.new("RGB", (50, 40), (10, 200, 30))) == FLAT
