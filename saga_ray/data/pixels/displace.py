"""Mirroring and displacing images by whole pixels, with slices instead of an index per pixel."""

from __future__ import annotations

import numpy as np


def displaced(
    images_NHWC: np.ndarray, mirrored_N: np.ndarray, shift_N2: np.ndarray, out_NHWC: np.ndarray | None = None
) -> np.ndarray:
    """Mirror images left to right, then move them down and right; edge pixels are repeated where nothing is left.

    Args:
        mirrored_N: bool.
        shift_N2: whole pixels down and right, of any size.
        out_NHWC: where to write; not the images themselves.

    Returns:
        `out_NHWC`, or a new array.
    """
    out_NHWC = np.empty_like(images_NHWC) if out_NHWC is None else out_NHWC
    height, width, channels = images_NHWC.shape[1:]
    # Beyond its own size, an image shows one edge either way.
    limits = np.array([height - 1, width - 1])
    for image, mirrored, shift, out in zip(
        images_NHWC, mirrored_N.tolist(), np.clip(shift_N2, -limits, limits).tolist(), out_NHWC, strict=True
    ):
        down, right = shift
        top, bottom = max(down, 0), height + min(down, 0)
        left, end = max(right, 0), width + min(right, 0)
        seen = image[:, ::-1] if mirrored else image
        seen = seen[top - down : bottom - down, left - right : end - right]
        inside = out[top:bottom, left:end]
        if mirrored:  # numpy copies a mirrored image three bytes at a time; plane by plane is eight times faster
            for channel in range(channels):
                inside[..., channel] = seen[..., channel]
        else:
            inside[...] = seen
        out[top:bottom, :left] = out[top:bottom, left : left + 1]
        out[top:bottom, end:] = out[top:bottom, end - 1 : end]
        out[:top] = out[top]
        out[bottom:] = out[bottom - 1]
    return out_NHWC
