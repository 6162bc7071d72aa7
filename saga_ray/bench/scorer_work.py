"""What is measured: pairs of random tokens, answers of a forced length, through the scorer and through its public twin."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from saga_ray.bench.random_mllm import MLLMShape, random_mllm
from saga_ray.bench.work_shapes import WorkShape, attributes, prompt_texts
from saga_ray.configure import resolve
from saga_ray.mllm.answers import Answer
from saga_ray.mllm.frozen import FrozenMLLM, Layout
from saga_ray.mllm.fused import fuse
from saga_ray.mllm.gradients import Policy, Scored, naive_score
from saga_ray.mllm.prompt import Prompt
from saga_ray.mllm.sampling import Completions
from saga_ray.rl.grpo import answer_weights, group_advantages
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.types import ImagePair, ScoreOptions, ScoreRequest, ScoreResult, VisualTokens


class RewardedEngine(ScoringEngine):
    """The scorer with rewards that alternate, since a random model earns none: every pair carries a gradient."""

    def _rewards(
        self, request: ScoreRequest, chosen: slice, pairs: Sequence[ImagePair], answers: list[Answer]
    ) -> Tensor:
        return alternating_rewards(len(pairs), self.config.grpo.group_size)


def alternating_rewards(num_pairs: int, group_size: int) -> Tensor:
    """(P, G) of 0, 1, 0, 1, ..."""
    return torch.arange(group_size).remainder(2).double().expand(num_pairs, -1)


@dataclass(frozen=True)
class Work:
    """An engine and what it is asked."""

    engine: ScoringEngine
    shape: WorkShape
    tokens_NLTD: Tensor
    rewards_PG: Tensor

    @property
    def mllm(self) -> FrozenMLLM:
        return self.engine.mllm

    def request(self, number: int) -> ScoreRequest:
        """The same pairs with the randomness of micro-batch `number`."""
        pairs = tuple(ImagePair(2 * p, 2 * p + 1, True, p) for p in range(self.shape.num_pairs))
        tokens = VisualTokens(self.tokens_NLTD, self.shape.grid_hw)
        options = ScoreOptions(attention=False)
        return ScoreRequest(0, number, pairs, tokens, options)

    @property
    def layout(self) -> Layout:
        return self.mllm.layout(self.engine.texts, self.shape.grid_hw)


def make_work(mllm_shape: MLLMShape, shape: WorkShape, answers: str = "free", **overrides: Any) -> Work:
    """A new engine on the CPU, float32; equal seeds make equal weights and tokens in any process."""
    mllm = random_mllm(mllm_shape, torch.device("cpu"), torch.float32)
    fuse(mllm, compiled=False)  # as a loaded one
    values = {"grpo.group_size": shape.group_size, "grpo.max_new_tokens": shape.answer, "grpo.temperature": 1.0}
    values |= {"grpo.top_p": 1.0, "grpo.reward": "sampled", "prompt.answers": answers} | {
        k.replace("__", "."): v for k, v in overrides.items()
    }
    texts = prompt_texts(shape, mllm_shape.vocabulary)
    # What may be in an answer matters to template answers only: a random model writes what it likes.
    prompt = Prompt("watcher", "bird", attributes(shape), "same", "structured", texts, answers=answers)
    engine = RewardedEngine(mllm, prompt, resolve("demo", overrides=values))
    # Answers of a random model end anywhere: nobody may end one here.
    engine.mllm.bias_V[list(mllm.end_ids)] = -torch.inf
    generator = torch.Generator().manual_seed(1)
    num_visual = shape.grid_hw[0] * shape.grid_hw[1]
    tokens = torch.randn(2 * shape.num_pairs, mllm.num_levels, num_visual, mllm.width, generator=generator)
    work = Work(engine, shape, tokens, alternating_rewards(shape.num_pairs, shape.group_size))
    layout = work.layout
    lengths = len(layout.before_ids), layout.positions_3C.shape[1]
    assert lengths == (shape.before, shape.prompt), (lengths, shape)
    return work


def ours(work: Work, number: int) -> tuple[ScoreResult, dict[str, float]]:
    """One request, and seconds of its phases."""
    began = time.perf_counter()
    result = work.engine.score(work.request(number))
    whole = time.perf_counter() - began
    sampling = float(result.counters["seconds/sample"])
    assert result.token_ids_PGR.shape[2] == work.shape.answer and bool((result.token_ids_PGR >= 0).all())
    assert bool(result.contributes_P.all())
    return result, {"step": whole, "sample": sampling, "gradient": whole - sampling}


def completions_of(result: ScoreResult) -> Completions:
    """The answers of a result, as its scorer had them."""
    ids_SR = result.token_ids_PGR.flatten(0, 1)
    ended_S = torch.zeros(len(ids_SR), dtype=torch.bool)
    return Completions(ids_SR, torch.zeros_like(ids_SR), result.log_probs_PG.flatten(), ended_S)


def naive_generate(work: Work) -> Tensor:
    """`generate` with G copies of every prompt, all pairs at once, as anybody would; (S, R) ids."""
    mllm, shape = work.mllm, work.shape
    config = mllm.model.config
    prompt = torch.tensor(work.layout.prompt_ids(config.image_token_id))
    ids = prompt.expand(shape.num_pairs * shape.group_size, -1)
    # One entry per image of every row.
    images = work.tokens_NLTD.view(shape.num_pairs, 1, 2, *work.tokens_NLTD.shape[1:])
    images = images.expand(-1, shape.group_size, -1, -1, -1, -1).flatten(0, 2)
    levels = images.transpose(0, 1)
    output = BaseModelOutputWithDeepstackFeatures(
        pooler_output=[*levels[0]], deepstack_features=[[*level] for level in levels[1:]]
    )
    rows, columns = shape.grid_hw
    try:
        out = mllm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_encoder_outputs={"image": output},
            mm_token_type_ids=(ids == config.image_token_id).int(),
            image_grid_thw=torch.tensor([[1, 2 * rows, 2 * columns]] * len(images)),
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            min_new_tokens=shape.answer,
            max_new_tokens=shape.answer,
            suppress_tokens=torch.isinf(mllm.bias_V).nonzero()[:, 0].tolist(),
        )
    finally:
        mllm.model.model.rope_deltas = None  # the library keeps them on the model
    return out[:, ids.shape[1] :]


def naive_gradient(work: Work, completions: Completions) -> Scored:
    """Plain autograd through the library's forward, pair by pair with G copies of its prompt."""
    tokens_P2LTD = work.tokens_NLTD.view(work.shape.num_pairs, 2, *work.tokens_NLTD.shape[1:])
    weights_SR = answer_weights(group_advantages(work.rewards_PG).flatten(), completions.token_ids_SR >= 0)
    pairs = range(work.shape.num_pairs)
    return naive_score(
        work.mllm,
        work.layout,
        tokens_P2LTD,
        completions,
        weights_SR,
        Policy(1.0, 1.0),
        pairs=pairs,
        replay_support=False,
    )


def naive(work: Work, completions: Completions) -> tuple[Scored, dict[str, float]]:
    """The public way: sample with `generate`, then differentiate (the given answers, so that gradients can be compared)."""
    began = time.perf_counter()
    ids_SR = naive_generate(work)
    sampled = time.perf_counter()
    assert ids_SR.shape == completions.token_ids_SR.shape
    scored = naive_gradient(work, completions)
    ended = time.perf_counter()
    return scored, {"step": ended - began, "sample": sampled - began, "gradient": ended - sampled}


def save_for_others(work: Work, folder: Path) -> None:
    """The same weights as a folder that the library loads by itself."""
    work.mllm.model.save_pretrained(folder)
    work.mllm.processor.save_pretrained(folder)
