"""How noisy every signal is: token gradients of groups that are sampled again and again, about the same pairs.

Pairs of neighbouring validation classes of the demo world are shown to the demo MLLM through its own tower. Each signal gives the
gradient of a step at the visual tokens, divided once as the trainer does. Between resamples nothing changes but the
answers, so their spread is the noise that a signal adds to training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from saga_ray.config import RunConfig
from saga_ray.configure import resolve
from saga_ray.data import load_dataset
from saga_ray.encoder.encoder import build_encoder
from saga_ray.rl.grpo import loss_units
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.local import build_engine
from saga_ray.train.naming import sample_questions
from saga_ray.train.progress import Progress, Silent
from saga_ray.types import ImagePair, ScoreOptions, ScoreRequest, VisualTokens

SIGNALS: dict[str, dict[str, Any]] = {
    "dapo (paper)": {},
    "grpo": {"grpo.normalisation": "grpo"},
    "dr-grpo": {"grpo.normalisation": "dr-grpo"},
    "rloo": {"grpo.normalisation": "rloo"},
    "expected": {"grpo.reward": "expected"},
    "expected, rloo": {"grpo.reward": "expected", "grpo.normalisation": "rloo"},
    "dapo, template": {"prompt.answers": "template"},
    "rloo, template": {"grpo.normalisation": "rloo", "prompt.answers": "template"},
    "expected, template": {"grpo.reward": "expected", "prompt.answers": "template"},
    "reference k2": {"loss.weights.reference_kl": 1.0},
    "reference k1-in-reward": {"loss.weights.reference_kl": 1.0, "grpo.reference_kl": "k1-in-reward"},
}
"""Keys of every signal. k3 has the gradient of k2; lessons hold given words, and no noise of sampling."""
MOVED = 0.1
"""For the KL: how far the encoder has moved from the reference, as a share of the tokens' length."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    num_pairs: int
    group_size: int
    num_groups: int
    """Times that the answers about all pairs are sampled."""


FULL, QUICK = Size(16, 8, 24), Size(2, 2, 2)


@dataclass(frozen=True)
class Spread:
    """One signal's gradients."""

    length: float
    """Of their mean, by an estimate from which the noise is taken off; 0 if it drowns."""
    noise: float
    """Root of their total variance: the expected distance of a gradient from the mean."""
    cosine: float
    """Mean of each gradient's with the mean of all others."""
    contributing: float
    """Share of pairs that have a gradient."""
    tokens_per_answer: float
    """Generated ones."""

    @property
    def noise_to_signal(self) -> float | None:
        """Noise over length: what can be compared between signals of other scales. None if the length drowns."""
        return self.noise / self.length if self.length > 0 else None


def spread(grads_NX: Tensor) -> tuple[float, float, float]:
    """Length, noise and cosine (see `Spread`) of N gradients, flattened."""
    num = len(grads_NX)
    grads_NX = grads_NX.double()
    mean_X = grads_NX.mean(dim=0)
    variance = float((grads_NX - mean_X).square().sum()) / (num - 1)
    # |mean of N|^2 holds a share 1 / N of the variance.
    length = max(0.0, float(mean_X.square().sum()) - variance / num) ** 0.5
    others_NX = (num * mean_X - grads_NX) / (num - 1)
    cosine = torch.nn.functional.cosine_similarity(grads_NX, others_NX, dim=1).mean()
    return length, variance**0.5, float(cosine)


def bench_signals(
    size: Size = FULL, progress: Progress | None = None, signals: Mapping[str, Mapping[str, Any]] = SIGNALS
) -> dict[str, Any]:
    """Measure every signal; as JSON holds it."""
    progress = progress or Silent()
    base = {"grpo.group_size": size.group_size, "data.num_classes": (16, 24, 16), "data.num_images": (4, 6, 4)}
    progress.stage("drawing the pictures")
    config = resolve("demo", overrides=base)
    questions = sample_questions(load_dataset(config), "validation", config.data.image_size, size.num_pairs)
    progress.stage("loading the MLLM")
    encoder, engine = build_encoder(config).eval(), build_engine(config)
    with torch.no_grad():
        tokens = encoder.encode_tokens(torch.from_numpy(questions.images_NHWC))
    found: dict[str, Any] = {}
    for number, (name, keys) in enumerate(signals.items()):
        changed = resolve("demo", overrides=base | dict(keys))
        prompt = replace(engine.prompt, answers=changed.prompt.answers)
        measured = _measure(ScoringEngine(engine.mllm, prompt, changed), changed, questions.pairs, tokens, size)
        found[name] = asdict(measured) | {"noise_to_signal": measured.noise_to_signal}
        progress.step(number + 1, len(signals), {})
    return {"size": asdict(size), "signals": found}


def _measure(
    engine: ScoringEngine, config: RunConfig, pairs: Sequence[ImagePair], tokens: VisualTokens, size: Size
) -> Spread:
    is_kl = config.loss.weights.reference_kl > 0
    here, reference = tokens, None
    if is_kl:
        generator = torch.Generator().manual_seed(5)
        noise_NLTD = torch.randn(tokens.tokens_NLTD.shape, generator=generator)
        by = MOVED * tokens.tokens_NLTD.norm(dim=(2, 3), keepdim=True) / noise_NLTD.norm(dim=(2, 3), keepdim=True)
        here, reference = VisualTokens(tokens.tokens_NLTD + by * noise_NLTD, tokens.grid_hw), tokens
    grads, contributing, num_tokens = [], [], []
    for number in range(size.num_groups):
        options = ScoreOptions(gradient=not is_kl, attention=False)
        result = engine.score(ScoreRequest(0, number, tuple(pairs), here, options, reference=reference))
        if is_kl:
            assert result.reference_grads_P2LTD is not None
            grad, units = result.reference_grads_P2LTD, result.num_tokens_PG.sum()
        else:
            chosen_P = result.contributes_P
            grad = result.token_grads_P2LTD
            units = loss_units(result.num_tokens_PG[chosen_P], config.grpo.normalisation).sum()
        grads.append(grad.flatten() / max(1, int(units)))
        contributing.append(1.0 if is_kl else float(result.contributes_P.double().mean()))
        num_tokens.append(float(result.num_tokens_PG.double().mean()))
    return Spread(*spread(torch.stack(grads)), sum(contributing) / len(grads), sum(num_tokens) / len(grads))
