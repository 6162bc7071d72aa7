"""What stands for an image in a chat template, and around its tokens in the prompt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageMarks:
    """What a chat template writes for one image, and what the processor puts around the image's tokens (one crop).

    Example: Gemma 3 is `ImageMarks("<start_of_image>", "\\n\\n<start_of_image>", "<end_of_image>\\n\\n")`.
    """

    placeholder: str
    opening: str = ""
    closing: str = ""
