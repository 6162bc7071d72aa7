"""Random crops of training images, each a function of its key."""

from __future__ import annotations

import numpy as np
from PIL import Image

from saga_ray.data.pixels.keyed import keyed_uniforms

_TRIES, _KEY = 10, 1


def cropped(images_NHWC: np.ndarray, keys_N: np.ndarray, crop_area: float) -> np.ndarray:
    """Cut a random box out of every image and resize it to the image's own size; with `crop_area` 1 nothing changes.

    Args:
        keys_N: (N,) uint64 from `augmentation_keys`.
        crop_area: least share of the area that a box keeps (`random_crops`).
    """
    if crop_area == 1:
        return images_NHWC
    return resized_crops(images_NHWC, random_crops(keys_N, *images_NHWC.shape[1:3], crop_area))


def random_crops(keys_N: np.ndarray, height: int, width: int, crop_area: float) -> np.ndarray:
    """Boxes as torchvision's `RandomResizedCrop` draws them, but each a function of its key: (N, 4) top, left, height, width.

    The area is uniform in crop_area .. 1 of the image's, the logarithm of width over height uniform between those of 3/4 and
    4/3. Of ten draws the first that fits counts; if none does, the whole image does.
    """
    uniforms = keyed_uniforms((_KEY,), keys_N, 4 * _TRIES).reshape(len(keys_N), _TRIES, 4)
    areas = height * width * (crop_area + (1 - crop_area) * uniforms[..., 0])
    ratios = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * uniforms[..., 1])
    widths, heights = (np.rint(np.sqrt(side)).astype(np.int64) for side in (areas * ratios, areas / ratios))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    tops = np.floor(uniforms[..., 2] * (height - heights + 1)).astype(np.int64)
    lefts = np.floor(uniforms[..., 3] * (width - widths + 1)).astype(np.int64)
    first_N = fits.argmax(axis=1)
    boxes_N4 = np.stack([tops, lefts, heights, widths], axis=2)[np.arange(len(keys_N)), first_N]
    return np.where(fits.any(axis=1)[:, None], boxes_N4, [0, 0, height, width])


def resized_crops(images_NHWC: np.ndarray, boxes_N4: np.ndarray) -> np.ndarray:
    """Cut a box (top, left, height, width) out of each image and resize it to the image's own size, bicubic."""
    out_NHWC = np.empty_like(images_NHWC)
    for place, (top, left, height, width) in enumerate(boxes_N4.tolist()):
        box = Image.fromarray(images_NHWC[place, top : top + height, left : left + width])
        out_NHWC[place] = box.resize(images_NHWC.shape[2:0:-1], Image.Resampling.BICUBIC)
    return out_NHWC
