"""Every setting of a run, as frozen models whose texts are the documentation; `saga_ray.configure` loads and combines them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

DATASETS = ("demo", "folder", "cub", "cars", "aircraft", "inat-aves")
WITH_TRUTH = ("demo",)
"""Data sets whose true attributes use the words of their prompt."""
RECIPES = ("paper", "demo")
METRIC_LOSSES = (
    "none", "potential-field", "proxy-anchor", "multi-similarity", "infonce",
    "contrastive", "triplet", "proxy-nca", "circle", "arcface",
)  # fmt: skip

# A Literal built from a tuple is fine at run time, and keeps names in one place; type checkers want it written out.
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


class Config(BaseModel):
    """Base of every config model: frozen, unknown keys are errors, the text under a field describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=Config)


def _all_said(checked: Checked, problems: list[str]) -> Checked:
    """`checked` itself, if there are no problems; otherwise all of them at once, one per line."""
    if problems:
        raise ValueError("\n".join(problems))
    return checked


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
        return _all_said(self, problems)


class EncoderConfig(Config):
    """The network that is trained and kept: vision tower and pooler."""

    tower: str = "mllm"
    """`mllm`: a trainable copy of the MLLM's own vision tower, as in the paper. `timm:NAME`: a model of timm, such as
    `timm:vit_small_patch16_224`, with a new connector to the MLLM's width."""
    weights: str | None = None
    """Weights of a timm tower: a .safetensors file, or `hub` for the model's own; null begins with random ones."""
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    """Commit of `encoder.weights=hub`, 40 hex digits; required for it, since a branch or tag may move."""
    pooler: Literal["mean", "max", "attention"] = "attention"
    """How visual tokens become one embedding (paper: attention for SAGA, mean for the baselines)."""
    dim: int | None = Field(None, ge=2)
    """Width of the embedding; null keeps the tower's width (paper: 4096)."""
    trainable: str = "all"
    """Which parameters learn: `all`; `blocks:N`, the tower's last N blocks and what stands behind them; `norms`, the tower's
    normalisations alone; `pooler`, nothing of the tower; each with pooler and new connector. `none` evaluates the
    pre-trained encoder."""

    @property
    def trains_tower(self) -> bool:
        """True if the tower learns, or a part of it."""
        return self.trainable not in ("pooler", "none")

    @model_validator(mode="after")
    def _names_are_known(self) -> EncoderConfig:
        problems = []
        if self.tower != "mllm" and not re.fullmatch(r"timm:[\w.]+", self.tower):
            problems.append(
                f"encoder.tower: {self.tower!r} is unknown; choose mllm, or timm:NAME such as timm:vit_small_patch16_224"
            )
        if not re.fullmatch(r"all|norms|pooler|none|blocks:[1-9]\d*", self.trainable):
            problems.append(
                f"encoder.trainable: {self.trainable!r} is unknown; choose all, blocks:N (the last N blocks), norms, pooler or none"
            )
        if self.tower == "mllm" and (self.weights is not None or self.revision is not None):
            problems.append(
                "encoder.weights: without effect for encoder.tower=mllm, whose weights are those of mllm.path; leave it and "
                "encoder.revision out"
            )
        return _all_said(self, problems)


class LossWeights(Config):
    """Factors of the losses in their sum; each loss is a mean over its own unit (batch, generated tokens, attribute tokens)."""

    metric: Weight = 1.0
    """Metric-learning loss on the pooled embeddings."""
    grpo: Weight = 1.0
    """Verdict reward, through the frozen MLLM into the tower."""
    alignment: Weight = 1.0
    """KL from the MLLM's attention to the pooler's."""
    reference_kl: Weight = 0.0
    """KL from the reference policy, which is the same MLLM looking through the initial encoder, on the sampled answers."""
    anchor: Weight = 0.0
    """Mean squared distance of all tokens to those of the initial encoder, in units of their mean square; asks no MLLM."""
    consensus: Weight = 0.0
    """Cross-entropy of the words that the MLLM agrees on for the class (`consensus.*`), through the frozen MLLM into the tower."""


class PotentialFieldConfig(Config):
    """Potential Field (arXiv 2405.18560)."""

    alpha: float = Field(4.0, gt=0)
    """Exponent of the decay: the force falls as distance^-(alpha + 1)."""
    delta: float = Field(0.3, gt=0, le=2.0)
    """Radius (unit sphere): attraction stops below it, repulsion beyond it."""
    proxies_per_class: int = Field(4, ge=1)
    """Learnable charges of every class (M)."""


class LossConfig(Config):
    """What the encoder is trained for."""

    metric: Literal[METRIC_LOSSES] = "potential-field"  # type: ignore[valid-type]
    """Metric-learning loss."""
    weights: LossWeights = LossWeights()
    potential_field: PotentialFieldConfig = PotentialFieldConfig()


class GRPOConfig(Config):
    """Group-relative policy optimisation (arXiv 2402.03300) with dynamic sampling (DAPO, arXiv 2503.14476)."""

    reward: Literal["sampled", "expected"] = "sampled"
    """`sampled`: 1 for a right verdict (paper). `expected`: the probability of the right verdict given what was written before it,
    whose gradient is taken exactly; answers that agree then still carry a signal."""
    normalisation: Literal["dapo", "grpo", "dr-grpo", "rloo"] = "dapo"
    """How rewards become weights of tokens. `dapo`: over the group's standard deviation, mean over all tokens of the step (paper).
    `grpo`: the same, mean over each answer's own tokens first. `dr-grpo`: reward less mean, mean over answers. `rloo`:
    reward less the mean of the others, mean over answers: unbiased. The last two give longer gradients."""
    reference_kl: Literal["k2", "k3", "k1-in-reward"] = "k2"
    """Form of the reference policy's KL, all of unbiased gradient. `k2`: half the squared difference per token. `k3`: the same
    gradient, logs a value that is never negative. `k1-in-reward`: of whole answers, against the others' mean."""
    group_size: int = Field(8, ge=2)
    """Completions sampled per pair (G). A group of one has no baseline: every advantage would be 0."""
    contributing_pairs: int = Field(8, ge=1)
    """Pairs with disagreeing answers that a step wants (K)."""
    max_micro_batches: int = Field(8, ge=1)
    """Micro-batches that a step may take in search of them (M)."""
    refill: bool = True
    """True: a step ends its search at K pairs (paper). False: every step of every method takes exactly M micro-batches, so that methods see equal images."""
    temperature: float = Field(0.7, gt=0, le=10)
    """Divides the logits, in the sampler and in log pi alike."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus of the sampler; log pi is taken over the same truncated support."""
    max_new_tokens: int = Field(1024, ge=1)
    """A longer answer is cut and gets reward 0."""
    min_std: float = Field(1e-6, gt=0)
    """Groups whose rewards have a smaller standard deviation get advantage 0."""


class ConsensusConfig(Config):
    """Class consensus: what the MLLM writes of a class's training images, tallied per attribute, and taught back."""

    refresh_steps: int = Field(25, ge=1)
    """Steps after which the tally of what was written meanwhile replaces the one that is taught."""
    sharpness: float = Field(3.0, gt=0, le=30)
    """Exponent of a word's share within the class over the root of its share among all classes."""
    source: Literal["mllm", "truth", "another-class"] = "mllm"
    """`truth` teaches the true words where a data set knows them: a ceiling for diagnosis, no method. `another-class` teaches
    every class what was written of another, always the same one: a control for whether it matters what the words mean."""


class AlignmentConfig(Config):
    """Attention alignment: the MLLM's attention teaches the pooler's."""

    layer_depth: float = Field(26 / 36, gt=0, le=1)
    """Relative depth of the one decoder layer that is read (paper: layer 26 of 36)."""
    rows: Literal["token", "predictor"] = "token"
    """Whose attention: that of the attribute token itself (paper), or of the position that predicts it."""


class OptimConfig(Config):
    """AdamW, cosine with warm-up, global clipping."""

    epochs: float = Field(3.0, gt=0)
    """Passes over the training images, at one micro-batch per step (or M without refill)."""
    steps: int | None = Field(None, ge=0)
    """Optimiser steps; overrides epochs."""
    lr_tower: float = Field(2e-5, ge=0)
    """Learning rate of the tower."""
    lr_pooler: float = Field(1e-4, ge=0)
    """Learning rate of the pooler."""
    lr_proxies: float = Field(1e-2, ge=0)
    """Learning rate of the metric loss's own parameters (not published)."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's, for tower and pooler (not published)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's (not published)."""
    warmup_share: Share = 0.05
    """Share of the steps with linear warm-up."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest global gradient norm."""


class MLLMConfig(Config):
    """The frozen multimodal LLM."""

    path: str | None = None
    """Local folder, or hub id; null takes the bundled demo model."""
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    """Commit of a hub id, 40 hex digits; required for one, since a branch or tag may move."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 elsewhere. float64 is for tests of exactness."""
    device_map: Literal["one", "auto"] = "one"
    """`one`: the model on one device. `auto`: its layers spread over all GPUs of the process (needs the package accelerate)."""


class PromptConfig(Config):
    """What the MLLM is asked."""

    variant: Literal["structured", "compact", "generic"] = "structured"
    """`structured` lists the attributes of the vocabulary; `compact` does so and asks for nothing but short values and the verdict;
    `generic` asks only for differences and verdict."""
    answers: Literal["free", "template"] = "free"
    """`free`: every token is the MLLM's own (paper). `template`: keys and punctuation are fed, only values and verdict are drawn, of
    those that the vocabulary allows; every answer can be read, confidence and reasoning are left out, and so are differences
    of described pictures."""
    value_tokens: int = Field(8, ge=1)
    """Template answers: most tokens of a value whose words the vocabulary leaves open, and of a generic answer's differences."""
    vocabulary: str | None = None
    """Name of a vocabulary in the package, or a YAML file of one's own; null takes the data set's, or that of the MLLM's folder."""
    vocabulary_digest: str | None = Field(None, pattern=r"^[0-9a-f]{12}$")
    """First 12 hex digits of that file's SHA-256, filled in: a run goes on with the words that it began with."""


class ScorerConfig(Config):
    """How the frozen MLLM is run; changes speed, not meaning."""

    deterministic: bool = False
    """Fixed shapes and `threads` everywhere, so that results do not depend on what shares a batch; slower."""
    threads: int = Field(1, ge=1)
    """Threads of trainer and scorer in deterministic mode."""
    pairs_per_chunk: int = Field(16, ge=1)
    """Pairs sampled and differentiated at once; bounds memory."""
    store_answers: bool = False
    """Store every answer of a run in `completions.parquet`, with tokens and spans; otherwise a sample is kept."""
    sampler: Literal["auto", "loop", "slots"] = "auto"
    """How answers are written: token by token in a plain loop, or in slots of fixed shape with CUDA graphs, one for each pair of a
    chunk; auto takes slots on a GPU, except in deterministic mode and for MLLMs that do not fit them."""
    timeout_s: float = Field(600.0, gt=0)
    """A remote request that takes longer is retried."""
    max_retries: int = Field(3, ge=0)
    """Retries of a remote request before the run stops at its last checkpoint."""
    service: str | None = Field(None, pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Name of a running service (`saga-ray serve`) to ask, which other runs may ask as well; null starts one for this command.
    Of no effect with --local."""
    tokens_per_request: int = Field(262144, ge=1)
    """Most tokens (prompts, and answers at their longest) of a remote request, and of those that a replica scores together:
    larger ones are split, smaller ones joined. With resources.max_scorers, a replica for each so many waiting tokens."""
    requests_in_flight: int | None = Field(None, ge=1)
    """Requests that a trainer has under way at once; null takes two for each replica."""


class CheckpointConfig(Config):
    """When progress is made safe."""

    every_steps: int = Field(50, ge=1)
    """Steps between checkpoints; the last step always writes one."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept."""


class ResourcesConfig(Config):
    """What a run asks of Ray; without effect on its numbers."""

    num_workers: int = Field(1, ge=1)
    """Training workers; must divide data.num_shards."""
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    num_scorers: int = Field(1, ge=1)
    """Replicas that hold the frozen MLLM."""
    max_scorers: int | None = Field(None, ge=1)
    """Replicas are added up to this number while many tokens wait, and go again; null keeps to num_scorers."""
    cpus_per_scorer: float = Field(0.5, gt=0)
    gpus_per_scorer: float = Field(0.0, ge=0)
    """GPUs of a replica: below 1 several replicas share one, above 1 the MLLM's layers are spread over them (mllm.device_map=auto)."""
    cpus_per_data_task: float = Field(0.25, gt=0)
    read_ahead_mb: float = Field(256.0, gt=0)
    """Decoded micro-batches that each worker's stream may hold in Ray's object store, in MB; two of each decoding task at least."""

    @property
    def most_scorers(self) -> int:
        """Replicas at most."""
        return self.max_scorers or self.num_scorers

    @model_validator(mode="after")
    def _replicas_in_order(self) -> ResourcesConfig:
        problems = []
        if self.most_scorers < self.num_scorers:
            problems.append(
                f"resources.max_scorers: {self.max_scorers} is less than resources.num_scorers ({self.num_scorers}); raise it, "
                f"or leave it out"
            )
        if self.gpus_per_scorer > 1 and self.gpus_per_scorer % 1:
            problems.append(
                f"resources.gpus_per_scorer: {self.gpus_per_scorer:g} is neither a share of one GPU nor a number of whole ones; "
                f"choose a number up to 1, or 2, 3, ..."
            )
        return _all_said(self, problems)


class EvaluationConfig(Config):
    """Zero-shot retrieval on unseen classes."""

    split: Literal["validation", "test"] = "test"
    """Whose classes are queried; sweeps choose on validation."""
    k: tuple[int, ...] = (1, 2, 4, 8)
    """Recall@k, as hit rate."""
    batch_size: int = Field(128, ge=1)
    """Images embedded at once."""
    check_images: bool = True
    """Decode the images of validation and test classes before the first step, so that a broken one does not stop the run after the
    last: once for each data set and folder of runs, some 10 s for 10,000 photographs of 500 x 375 pixels on two cores."""
    watch_steps: int = Field(0, ge=0)
    """Every so many steps the MLLM is asked about some pairs of validation classes, for the log; 0 never asks."""
    kmeans_restarts: int = Field(4, ge=1)
    """Starts of the k-means behind NMI."""


class RunConfig(Config):
    """One run: data set, recipe, method, seed, and every value below them."""

    dataset: Literal[DATASETS]  # type: ignore[valid-type]
    recipe: Literal[RECIPES]  # type: ignore[valid-type]
    """Base values: `paper` (as published, Qwen3-VL-8B) or `demo` (the bundled small MLLM)."""
    method: str = "saga"
    """Preset on top of the recipe."""
    seed: int = Field(0, ge=0)
    """Of the plan, the augmentation, the answers and new parameters."""
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    loss: LossConfig = LossConfig()
    grpo: GRPOConfig = GRPOConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    consensus: ConsensusConfig = ConsensusConfig()
    optim: OptimConfig = OptimConfig()
    mllm: MLLMConfig = MLLMConfig()
    prompt: PromptConfig = PromptConfig()
    scorer: ScorerConfig = ScorerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resources: ResourcesConfig = ResourcesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def asks_the_mllm(self) -> bool:
        """True if any loss needs the frozen MLLM."""
        weights = self.loss.weights
        asking = (weights.grpo, weights.alignment, weights.reference_kl, weights.consensus)
        return self.encoder.trainable != "none" and max(asking) > 0

    @property
    def samples_answers(self) -> bool:
        """True if any loss needs the MLLM's own answers about the plan's pairs."""
        weights = self.loss.weights
        tallied = weights.consensus if self.consensus.source != "truth" else 0.0
        return self.asks_the_mllm and max(weights.grpo, weights.alignment, weights.reference_kl, tallied) > 0

    @property
    def needs_reference(self) -> bool:
        """True if any loss needs the tokens of the initial encoder."""
        return self.encoder.trainable != "none" and max(self.loss.weights.reference_kl, self.loss.weights.anchor) > 0

    @model_validator(mode="after")
    def _keys_agree(self) -> RunConfig:
        problems = []
        if self.data.num_shards % self.resources.num_workers:
            problems.append(
                f"resources.num_workers: {self.resources.num_workers} does not divide data.num_shards ({self.data.num_shards}); "
                f"choose a divisor, or raise data.num_shards"
            )
        if self.resources.gpus_per_scorer > 1 and self.mllm.device_map == "one":
            problems.append(
                f"resources.gpus_per_scorer: {self.resources.gpus_per_scorer:g} would leave all but one GPU of a replica idle; set "
                f"mllm.device_map=auto, or resources.gpus_per_scorer=1"
            )
        if self.loss.weights.alignment > 0 and self.encoder.pooler != "attention":
            problems.append(
                f"loss.weights.alignment: {self.loss.weights.alignment} needs encoder.pooler=attention (now {self.encoder.pooler}): "
                f"only that pooler has weights to align; set one of the two"
            )
        if self.grpo.reward == "expected" and self.grpo.top_p < 1:
            problems.append(
                f"grpo.top_p: {self.grpo.top_p} cuts off verdicts whose probability grpo.reward=expected needs; set grpo.top_p=1"
            )
        if self.asks_the_mllm and self.loss.weights.reference_kl > 0 and self.grpo.top_p < 1:
            problems.append(
                f"grpo.top_p: {self.grpo.top_p} cuts off answers that loss.weights.reference_kl compares; set grpo.top_p=1"
            )
        if self.loss.weights.consensus > 0 and self.prompt.variant == "generic":
            problems.append(
                f"loss.weights.consensus: {self.loss.weights.consensus} needs prompt.variant=structured (now generic): "
                f"without descriptions there is nothing to agree on; set one of the two"
            )
        if self.loss.weights.consensus > 0 and self.consensus.source == "truth" and self.dataset not in WITH_TRUTH:
            problems.append(
                f"consensus.source: truth needs a data set whose attributes are known ({', '.join(WITH_TRUTH)}), not "
                f"'{self.dataset}'; set consensus.source=mllm"
            )
        if self.dataset not in ("demo",) and self.data.root is None:
            problems.append(f"data.root: missing; say where the images of '{self.dataset}' are with --data-root DIR")
        return _all_said(self, problems)
