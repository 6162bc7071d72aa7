"""Settings of the frozen MLLM: which, what it is asked, how it is run, and what becomes of its answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saga_ray.config.base import Config
from saga_ray.config.learning import MetricLoss


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
    compile: bool = False
    """On a GPU: torch.compile fuses what lies between matrix products (Qwen3-VL) and the softmax of sampling. The first step takes
    a minute or two longer. Measured for sampling alone (`python -m saga_ray.bench.gpu`), never in a training run."""


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


class GRPOConfig(Config):
    """Group-relative policy optimisation (arXiv 2402.03300) with dynamic sampling (DAPO, arXiv 2503.14476)."""

    reward: Literal["sampled", "expected"] = "sampled"
    """`sampled`: 1 for a right verdict (paper). `expected`: the probability of the right verdict given what was written before it,
    whose gradient is taken exactly; answers that agree then still carry a signal."""
    normalisation: Literal["dapo", "grpo", "dr-grpo", "rloo"] = "dapo"
    """How rewards become weights of tokens. `dapo`: over the group's standard deviation, mean over all tokens of the step (paper).
    `grpo`: the same, mean over each answer's own tokens first. `dr-grpo`: reward less mean, mean over answers. `rloo`:
    reward less the mean of the others, mean over answers: unbiased. The last two give longer gradients, about 25
    times in the demo: divide `loss.weights.grpo` by about as many tokens as an answer has."""
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
    generations: int = Field(1, ge=1, le=9)
    """Encoders that are trained one after another, each from the initial weights. The first learns without the MLLM, from
    labels, which leads its tokens back to where the MLLM reads; each later one is taught what the MLLM reads through the one
    before it (`refresh_steps` has no meaning then). Together they take the steps of one run, the last twice as many as each
    other one, and only the last one's rate falls to 0. 1: one encoder, and the MLLM reads through it as it is."""
    first_metric: MetricLoss | None = None
    """Metric loss of the first of several generations; none named, it is `loss.metric` as for all others."""
    first_lr_tower: float | None = Field(None, ge=0)
    """Learning rate of the tower in the first of several generations; none given, it is `optim.lr_tower`."""
    sharpness: float = Field(3.0, gt=0, le=30)
    """Exponent of a word's share within the class over the root of its share among all classes."""
    source: Literal["mllm", "truth", "another-class", "other-words"] = "mllm"
    """`truth` teaches the true words where a data set knows them: a ceiling for diagnosis, no method. Two controls for whether
    it matters what the words mean: `another-class` teaches every class what was written of another, always the same one;
    `other-words` exchanges every word for another of its attribute, the same way for all classes, so that classes have in
    common what they had."""


class AlignmentConfig(Config):
    """Attention alignment: the MLLM's attention teaches the pooler's."""

    layer_depth: float = Field(26 / 36, gt=0, le=1)
    """Relative depth of the one decoder layer that is read (paper: layer 26 of 36)."""
    rows: Literal["token", "predictor"] = "token"
    """Whose attention: that of the attribute token itself (paper), or of the position that predicts it."""


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
    """Seconds after which a remote request is asked again that no replica is at: time in the queue of one that scores others does
    not count. A pass that takes twice as long counts as stuck, and its replica is replaced."""
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
