"""What every tower is: uint8 images of one size to visual tokens of every level."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from saga_ray.types import VisualTokens


class Tower(nn.Module):
    """Base of the towers; a subclass builds its network in `__init__` and names what differs."""

    kind: ClassVar[str]
    """Its name in `encoder.json`."""
    settings: dict[str, Any]
    """All that is needed to build it again without its weights: what `encoder.json` holds."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # The stock processor folds the division by 255 into mean and std; folding alike makes pixels bit-equal.
        self.register_buffer("mean_C", torch.tensor(mean) * (1.0 / (1 / 255)), persistent=False)
        self.register_buffer("std_C", torch.tensor(std) * (1.0 / (1 / 255)), persistent=False)

    @property
    def width(self) -> int:
        """Width D of the tokens."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.parameters()).dtype

    @property
    def backbone(self) -> str:
        """Architecture in a few characters, for a result's row."""
        raise NotImplementedError

    def check_size(self, size: int) -> None:
        """Raise ValueError if the tower cannot read images of this side."""
        raise NotImplementedError

    def forward(self, images_NHWC: Tensor) -> VisualTokens:
        """Visual tokens of uint8 images of one size."""
        raise NotImplementedError

    def new_parameters(self) -> list[nn.Parameter]:
        """Parameters that no pre-training has seen, such as a connector's: they learn at the pooler's rate."""
        return []

    def normalised(self, images_NHWC: Tensor) -> Tensor:
        """float32 (N, C, H, W): pixels as the stock image processor normalises them."""
        if images_NHWC.dtype != torch.uint8 or images_NHWC.shape[-1] != 3:
            raise ValueError(
                f"images: expected uint8 (N, H, W, 3), got {images_NHWC.dtype} {tuple(images_NHWC.shape)}; convert them first"
            )
        pixels_NCHW = images_NHWC.permute(0, 3, 1, 2).to(torch.float32)
        return (pixels_NCHW - self.mean_C.float().view(1, -1, 1, 1)) / self.std_C.float().view(1, -1, 1, 1)


def check_multiple(size: int, step: int) -> None:
    """Raise ValueError for a side that is no multiple of `step` pixels."""
    if size % step:
        raise ValueError(
            f"data.image_size: {size} is no multiple of {step} (patch size x merge size of the tower); "
            f"choose {max(step, round(size / step) * step)}"
        )


def check_equal(size: int, wanted: int) -> None:
    """Raise ValueError for a tower that reads images of one side only."""
    if size != wanted:
        raise ValueError(f"data.image_size: {size}, but this tower reads {wanted} x {wanted} only; choose {wanted}")


def as_patches(pixels_NCHW: Tensor, patch: int, merge: int, frames: int) -> tuple[Tensor, tuple[int, int]]:
    """Patches as Qwen's image processors lay them out, and their grid (rows, columns).

    Returns:
        (N * patches, channels * frames * patch * patch); merged groups of patches are neighbours.
    """
    num, channels, height, width = pixels_NCHW.shape
    rows, columns = height // patch, width // patch
    split = pixels_NCHW.reshape(num, channels, rows // merge, merge, patch, columns // merge, merge, patch)
    split = split.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    flat = split.expand(-1, -1, -1, -1, -1, -1, frames, -1, -1).reshape(num * rows * columns, -1)
    return flat, (rows, columns)
