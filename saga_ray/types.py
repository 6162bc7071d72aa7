"""What crosses from one stage to the next: frozen dataclasses, and the letters that name tensor axes.

Axes, the last letters of a tensor's name:

    N  images (of a micro-batch, or of a split)      P  pairs of images
    G  completions per pair (the group)              R  tokens of a completion, padded to the longest
    L  levels of visual tokens: level 0 enters the language model as input embeddings, levels 1.. are
       DeepStack features, added after decoder layers 0..                (one level for families without)
    T  visual tokens per image, raster order         D  width of the language model
    E  width of the retrieval embedding              C, H, W  channels, height, width
    S  rows that are scored at once                  V  vocabulary of the tokenizer
    2  (as an axis) first and second image of a pair
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from torch import Tensor


class OnProgress(Protocol):
    """Called with what is done and what there is in all: images, or bytes (0 where a server does not say)."""

    def __call__(self, done: int, of: int, /) -> None: ...


class ImageSource(Protocol):
    """Where pixels come from; small and picklable, so that it can travel to any worker."""

    def load(self, rows: Sequence[int], size: int) -> np.ndarray:
        """Decode `rows` of the table into uint8 (N, size, size, 3), RGB, a plain resize, each row on its own."""
        ...


@runtime_checkable
class FileSource(ImageSource, Protocol):
    """An `ImageSource` whose images are files, or the bytes of files kept elsewhere."""

    cut_bottom: int
    """Pixels cut off below, before resizing."""
    draft: bool
    """Whether JPEG files are decoded no larger than needed (`data.decode`)."""

    def read(self, row: int) -> bytes:
        """The file's bytes; ValueError, naming it, if it cannot be read."""
        ...

    def size_of(self, row: int) -> int:
        """Number of its bytes."""
        ...

    def sha256_of(self, row: int) -> str:
        """SHA-256 of its bytes, in hexadecimal digits."""
        ...

    def name(self, row: int) -> str:
        """What to call it in a message."""
        ...

    def file_name(self, row: int) -> str:
        """The name that it has or had, for its ending."""
        ...


@dataclass(frozen=True)
class ImageTable:
    """One split of a data set, in a fixed order.

    Example: `ImageTable(("a.jpg", "b.jpg"), labels_N=array([0, 1]), class_names=("owl", "wren"), source=...)`.
    """

    image_ids: tuple[str, ...]
    """Unique, stable names of the images."""
    labels_N: np.ndarray
    """int64 class numbers, 0 .. len(class_names) - 1, of this split."""
    class_names: tuple[str, ...]
    source: ImageSource
    truth_NA: np.ndarray | None = None
    """int64 true attribute values where a data set knows them, -1 where not of this image; for evaluation only, no training signal reads it."""

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class Dataset:
    """Three splits with disjoint classes, and the fingerprint that says which data this was."""

    name: str
    train: ImageTable
    validation: ImageTable
    test: ImageTable
    fingerprint: str
    """16 hex digits over (files' content, labels, split, preprocessing)."""
    partial: bool = False
    """True when counts differ from the owner's: such rows are never ranked with complete ones."""
    attribute_names: tuple[str, ...] = ()
    """Names of the columns of `truth_NA`, empty where there is none."""
    attribute_values: tuple[tuple[str, ...], ...] = ()
    """Words of each column's values."""

    def split(self, name: str) -> ImageTable:
        """The table of split `train`, `validation` or `test`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


@dataclass(frozen=True)
class ImagePair:
    """Two images shown to the MLLM, as positions in the micro-batch that carries them.

    Example: `ImagePair(first=0, second=5, same_class=False, number=3)` is the fourth pair of its micro-batch.
    """

    first: int
    second: int
    same_class: bool
    number: int
    """Place in the whole micro-batch's plan order (over all shards); keys the pair's randomness."""


@dataclass(frozen=True)
class PairPlan:
    """Row of the plan: which training images form micro-batch `index` for one rank, and which pairs are shown."""

    index: int
    rows: tuple[int, ...]
    """Rows of the training table, in order."""
    pairs: tuple[ImagePair, ...]


@dataclass(frozen=True)
class MicroBatch:
    """A decoded row of the plan."""

    index: int
    images_NHWC: np.ndarray
    """uint8, augmented."""
    labels_N: np.ndarray
    rows_N: np.ndarray
    pairs: tuple[ImagePair, ...]
    broken: tuple[str, ...] = ()
    """Planned images that could not be decoded and were replaced by others of their class, by file."""


@dataclass(frozen=True)
class VisualTokens:
    """All that the vision side hands to the language model, for N images of one size.

    Example: Qwen3-VL-8B at 224 x 224: `tokens_NLTD` is (N, 4, 49, 4096), `grid_hw` is (7, 7).
    """

    tokens_NLTD: Tensor
    grid_hw: tuple[int, int]

    def __len__(self) -> int:
        return self.tokens_NLTD.shape[0]


@dataclass(frozen=True)
class ScoreOptions:
    """What a request asks for beside the completions."""

    gradient: bool = True
    """Return d L_GRPO / d tokens of every contributing pair."""
    attention: bool = True
    """Return the attention of attribute tokens over the images, of every contributing pair."""
    lesson: bool = False
    """Given answers are to be learned up to the last described value: values, keys and punctuation weigh 1."""


@dataclass(frozen=True)
class ScoreRequest:
    """Pairs of one micro-batch, the visual tokens of its images, and the key of their randomness."""

    seed: int
    micro_batch: int
    pairs: tuple[ImagePair, ...]
    tokens: VisualTokens
    options: ScoreOptions = field(default_factory=ScoreOptions)
    answers: tuple[tuple[str, ...], ...] | None = None
    """Given answers, G per pair, scored in place of sampled ones (teacher forcing)."""
    rewards_PG: Tensor | None = None
    """Rewards of the given answers; without them they are parsed as sampled ones are."""
    reference: VisualTokens | None = None
    """The same images through the initial encoder: asks for the gradient of the KL from that policy as well."""
    origins_P: tuple[tuple[int, int], ...] | None = None
    """(seed, micro-batch) of every pair, where several requests were joined into this one (`scorer.parts`)."""


@dataclass(frozen=True)
class ScoreResult:
    """What the frozen MLLM says of P pairs. Sums over tokens and their counts, never means: the trainer divides once.

    For one pair of 64 x 64 images, G = 8 and the demo MLLM: `token_grads_P2LTD` is (1, 2, 4, 16, 128).
    """

    texts_PG: tuple[tuple[str, ...], ...]
    """The completions, decoded."""
    token_ids_PGR: Tensor
    """int64, padded with -1."""
    num_tokens_PG: Tensor
    """int64 generated tokens, the end token included, also of pairs that do not contribute; what a template fed does not count."""
    log_probs_PG: Tensor
    """Sum of log pi over the completion's tokens, at the sampling temperature and on the sampled support."""
    rewards_PG: Tensor
    advantages_PG: Tensor
    """Exactly 0 for every completion of a pair whose rewards agree."""
    well_formed_PG: Tensor
    """bool: the answer parsed and holds a verdict; a malformed or cut one has reward 0."""
    verdicts_PG: Tensor
    """int8: 1 same, 0 different, -1 none."""
    contributes_P: Tensor
    """bool: the pair carries a gradient; with sampled rewards, its answers disagree."""
    loss_P: Tensor
    """float64: -sum_gt w_gt log pi_gt over the pair's tokens, w the weight of a token (its answer's advantage, for GRPO)."""
    num_taught_P: Tensor
    """int64 number of value tokens that a lesson teaches, the mean of its loss; 0 without a lesson."""
    token_grads_P2LTD: Tensor
    """d loss_P / d tokens, per pair and image; zeros where a pair does not contribute."""
    attention_sum_P2T: Tensor
    """Attention from attribute tokens of correct answers to their image, renormalised per token, summed over tokens."""
    attention_count_P2: Tensor
    """int64 number of attribute tokens in that sum."""
    counters: Mapping[str, float | str]
    """`path` (shared | naive), `process` (host:pid), `zero_advantage_pairs`, `num_tokens`, `num_fed`, `seconds/*`."""
    reference_kl_P: Tensor | None = None
    """float64: sum over tokens of the estimated KL from the reference policy, (log pi - log pi_ref)^2 / 2 for k2."""
    reference_grads_P2LTD: Tensor | None = None
    """The KL's gradient at the tokens, unbiased in each of its forms, of every pair."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that there is, by name; all but `token_ids_PGR` can be joined along P as they are."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: value for name, value in found.items() if name not in ("texts_PG", "counters") and value is not None
        }


class Scorer(Protocol):
    """The one interface between the encoder and the frozen MLLM, in process or behind Ray Serve."""

    def score(self, request: ScoreRequest) -> ScoreResult:
        """Sample, judge and differentiate the request's pairs."""
        ...

    def describe(self) -> Mapping[str, str]:
        """Identity: hash of weights, prompt and code; dtype; process."""
        ...


@runtime_checkable
class ScorerElsewhere(Scorer, Protocol):
    """A scorer that works while the caller goes on."""

    def begin(self, request: ScoreRequest) -> Callable[[], ScoreResult]:
        """Send a request off; calling what is returned waits for what `score` would return."""
        ...
