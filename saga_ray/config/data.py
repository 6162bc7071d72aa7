"""Settings of images, micro-batches and pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from saga_ray.config.base import Config, Share, all_said


class DataConfig(Config):
    """Which images are seen, in which micro-batches, and which pairs are shown to the MLLM."""

    root: str | None = None
    """Folder of the images, or the owner's archive of them; not used by the demo world."""
    image_size: int = Field(224, ge=16, le=4096)
    """Side in pixels of the square that every image is resized to, without cropping (paper: 224)."""
    decode: Literal["exact", "draft"] = "exact"
    """`draft` decodes large JPEG files at a half, a quarter or an eighth of their size where that is enough: sooner, with slightly
    other pixels, and so under another fingerprint."""
    verify_counts: bool = True
    """Refuse a tree whose classes and counts differ from those its owner published; false goes on and marks results partial."""
    validation_share: float = Field(0.2, gt=0.0, lt=1.0)
    """Share of the training classes that is held back as validation classes, where a data set names none."""
    classes_per_batch: int = Field(16, ge=2)
    """Classes in a micro-batch."""
    images_per_class: int = Field(4, ge=2)
    """Images of each of them; a micro-batch has classes_per_batch x images_per_class images (paper: 64)."""
    num_shards: int = Field(4, ge=1)
    """Parts of every micro-batch; pairs stay within a shard and a worker owns whole shards, so that the plan does not know the number of workers."""
    pairs_per_batch: int = Field(16, ge=1)
    """Pairs of every micro-batch that the MLLM is shown, half of them of one class."""
    hard_share: Share = 0.5
    """Share of shards whose classes are easily taken for one another."""
    hard_from: Literal["embeddings", "taxonomy"] = "embeddings"
    """Which those are. `embeddings`: neighbours in the pre-trained encoder's embedding. `taxonomy`: relatives in the tree of
    `data.taxonomy`; no image is embedded before the first step then."""
    taxonomy: str | None = None
    """YAML file of nested groups whose leaves are lists of class names; null reads iNaturalist's names (order, family, genus)."""
    taxonomy_digest: str | None = Field(None, pattern=r"^[0-9a-f]{12}$")
    """First 12 hex digits of that file's SHA-256, filled in: a run goes on with the groups that it began with."""
    mining_images: int | None = Field(None, ge=1)
    """Images of every class that are embedded to find neighbours; null takes all. Some 20 are enough for very large sets."""
    flip: bool = True
    """Mirror training images at random."""
    shift_pixels: Share = 0.0
    """Largest random displacement of training images, as a share of the side."""
    crop_area: float = Field(1.0, gt=0.0, le=1.0)
    """Least share of its area that a random crop of a training image keeps, resized to the full square again; 1 never crops. The
    crop is cut from the square that the image was squeezed to, so its proportions are drawn on top of that squeeze."""
    world_seed: int = Field(0, ge=0)
    """Demo world only: which world is drawn."""
    confound: Share = 1.0
    """Demo world only: the share of training pictures taken at the home of their class, and that of its light."""
    home: Literal["habitat", "place"] = "place"
    """Demo world only: whether that home is a kind of habitat, or one place."""
    gap: Literal["washed-out", "filter", "quarter-turn", "washed-out+quarter-turn", "filter+quarter-turn"] = (
        "washed-out+quarter-turn"
    )
    """Demo world only: the systematic difference between its pictures and those the demo MLLM was made on."""
    shift: Share = 0.45
    """Demo world only: strength of that gap."""
    tied: int = Field(5, ge=0, le=5)
    """Demo world only: how many of the ten attributes follow others among training classes, and only there. Followers change
    with what they follow: 5 leaves room for about 100 training classes, and hardly for an odd neighbour_distance."""
    neighbour_distance: int = Field(4, ge=1, le=10)
    """Demo world only: attributes in which neighbouring classes differ."""
    num_classes: tuple[int, int, int] = (100, 40, 80)
    """Demo world only: training, validation and test classes."""
    num_images: tuple[int, int, int] = (30, 20, 20)
    """Demo world only: images per training, validation and test class."""
    max_broken_share: Share = 0.001
    """Broken training images are replaced and counted; more than this share stops the run."""

    @property
    def batch_size(self) -> int:
        """Images in a micro-batch."""
        return self.classes_per_batch * self.images_per_class

    @model_validator(mode="after")
    def _shards_divide_the_batch(self) -> DataConfig:
        problems = []
        if self.classes_per_batch % self.num_shards or self.classes_per_batch // self.num_shards < 2:
            problems.append(
                f"data.num_shards: {self.num_shards} must divide data.classes_per_batch ({self.classes_per_batch}) and leave "
                f"at least 2 classes in each shard; choose a smaller number of shards"
            )
        if self.pairs_per_batch % self.num_shards:
            problems.append(
                f"data.pairs_per_batch: {self.pairs_per_batch} is not a multiple of data.num_shards ({self.num_shards}); "
                f"choose a multiple, so that every shard has the same number of pairs"
            )
        if self.taxonomy is not None and self.hard_from != "taxonomy":
            problems.append(
                f"data.taxonomy: {self.taxonomy} would not be read with data.hard_from={self.hard_from}; set "
                f"data.hard_from=taxonomy, or leave it out"
            )
        return all_said(self, problems)
