"""Mirroring and displacing with slices, against one index per pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_ray.data.pixels.displace import displaced


def pixel_by_pixel(images_NHWC, mirrored_N, shift_N2):
    out_NHWC = np.empty_like(images_NHWC)
    _, height, width, _ = images_NHWC.shape
    for n, (down, right) in enumerate(shift_N2.tolist()):
        for y in range(height):
            for x in range(width):
                column = min(max(x - right, 0), width - 1)
                column = width - 1 - column if mirrored_N[n] else column
                out_NHWC[n, y, x] = images_NHWC[n, min(max(y - down, 0), height - 1), column]
    return out_NHWC


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 9), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_slices_equal_one_index_per_pixel_for_shifts_of_any_size(height, width, largest, seed):
    rng = np.random.default_rng(seed)
    images_NHWC = rng.integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    mirrored_N, shift_N2 = rng.random(4) < 0.5, rng.integers(-largest, largest + 1, (4, 2))
    before = images_NHWC.copy()
    expected = pixel_by_pixel(images_NHWC, mirrored_N, shift_N2)
    np.testing.assert_array_equal(displaced(images_NHWC, mirrored_N, shift_N2), expected)
    out_NHWC = np.full_like(images_NHWC, 7)
    assert displaced(images_NHWC, mirrored_N, shift_N2, out_NHWC) is out_NHWC
    np.testing.assert_array_equal(out_NHWC, expected)
    np.testing.assert_array_equal(images_NHWC, before)
