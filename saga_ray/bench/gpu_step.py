"""A training step on one device from the same functions that a run uses, with a switch for every optimisation."""

from __future__ import annotations

import copy
import dataclasses
import gc
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saga_ray.bench.random_mllm import QWEN3_VL_8B, MLLMShape, fill_, random_mllm
from saga_ray.bench.work_shapes import SHAPES, WorkShape, prompt_texts
from saga_ray.encoder.tower import VisionTower
from saga_ray.mllm import gradients
from saga_ray.mllm.frozen import FrozenMLLM, Layout, Prefix
from saga_ray.mllm.fused import fuse, unfuse
from saga_ray.mllm.gradients import Policy, score_shared
from saga_ray.mllm.sampling import Completions, sample, uniform_numbers
from saga_ray.mllm.slots import SlotSampler
from saga_ray.mllm.two_part import can_be_split
from saga_ray.rl.grpo import answer_weights, group_advantages

POLICY = Policy(0.7, 0.95)


@dataclass(frozen=True)
class BenchSize:
    """What is built and asked."""

    mllm: MLLMShape
    works: dict[str, WorkShape]
    small_depth: int
    """Decoder layers of the copy on which gradients are compared."""
    short: int
    """Tokens for ways of sampling that are too slow for whole answers."""
    compile: bool
    gemm_rows: int
    copy_mb: int

    def described(self) -> dict[str, Any]:
        """For the report."""
        return dataclasses.asdict(self)


def real_size(num_pairs: int | None = None) -> BenchSize:
    """Qwen3-VL-8B, the paper's shape and the compact one."""
    paper = dataclasses.replace(SHAPES["paper"], num_pairs=num_pairs or 16)
    compact = dataclasses.replace(SHAPES["compact"], num_pairs=16)
    return BenchSize(QWEN3_VL_8B, {"paper": paper, "compact": compact}, 4, 64, True, 4096, 4096)


TINY = BenchSize(
    MLLMShape(64, 5, 4, 2, 16, 128, 512, 4, 32, 64, 2, (0, 1, 2)),
    {
        "paper": WorkShape(
            (2, 2), before=20, between=3, after=4, answer=24, num_attributes=1, value=2, num_pairs=3, group_size=4
        ),
        "compact": WorkShape(
            (2, 2), before=5, between=3, after=4, answer=18, num_attributes=1, value=1, num_pairs=3, group_size=4
        ),
    },
    small_depth=4,
    short=6,
    compile=False,
    gemm_rows=64,
    copy_mb=1,
)


class Clock:
    """Seconds of phases, the device's queue included."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.seconds = device, dict[str, float]()
        self._last = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self, name: str) -> None:
        """All since the last lap was `name`."""
        now = self._now()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


class Bench:
    """The MLLM and the tower on the device."""

    def __init__(self, size: BenchSize, device: torch.device) -> None:
        self.size, self.device = size, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        began = time.perf_counter()
        self.mllm = _banned(random_mllm(size.mllm, device, self.dtype))
        self.tower = make_tower(self.mllm, device)
        self.optimizer = torch.optim.AdamW(self.tower.parameters(), lr=1e-6, fused=device.type == "cuda")
        self.seconds = time.perf_counter() - began
        self.samplers: dict[str, SlotSampler] = {}
        self.constants: dict[str, tuple[Layout, list[tuple[Tensor, Tensor]]]] = {}
        self.compiled = False
        if device.type == "cuda":
            # Rows of answers whose graph fits beside weights, tower and the sampler's keys and values.
            gradients.MAX_ROWS = 2816 if torch.cuda.get_device_properties(device).total_memory < 100e9 else 5632

    def around(self, mllm: FrozenMLLM) -> Bench:
        """The same bench around another MLLM."""
        other = copy.copy(self)
        other.mllm, other.samplers, other.constants = _banned(mllm), {}, {}
        return other

    def described(self) -> dict[str, Any]:
        """Sizes in parameters."""
        return {
            "made_s": round(self.seconds, 1),
            "decoder_parameters": self.size.mllm.num_layers * self.size.mllm.layer_parameters,
            "tower_parameters": sum(p.numel() for p in self.tower.parameters()),
            "dtype": str(self.dtype),
        }

    def switch(self, *, split: bool, fused: bool, compiled: bool = False) -> None:
        """Choose how the decoder is run; what was made for another way is thrown away."""
        unfuse(self.mllm)
        if fused:
            assert fuse(self.mllm, compiled=compiled and self.size.compile), "layers of another kind"
        dtype = self.mllm.dtype
        self.mllm = _banned(dataclasses.replace(self.mllm, split=split and can_be_split(self.device, dtype)))
        self.compiled = compiled and self.size.compile
        self.samplers.clear()
        self.constants.clear()
        self.tidy()

    def tidy(self) -> None:
        """Give unused memory back."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def layout(self, work: WorkShape) -> tuple[Layout, list[tuple[Tensor, Tensor]]]:
        """Prompt and its constant keys and values."""
        key = str(work.prompt)
        if key not in self.constants:
            layout = self.mllm.layout(prompt_texts(work, self.size.mllm.vocabulary), work.grid_hw)
            self.constants[key] = (layout, self.mllm.constant_prefix(layout))
        return self.constants[key]

    def tokens(self, work: WorkShape) -> Tensor:
        """Random tokens (P, 2, L, T, D) in place of a tower's."""
        generator = torch.Generator(self.device).manual_seed(3)
        shape = (work.num_pairs, 2, self.mllm.num_levels, work.grid_hw[0] * work.grid_hw[1], self.mllm.width)
        return torch.randn(shape, generator=generator, device=self.device).to(self.dtype)

    @torch.no_grad()
    def prefixes(self, work: WorkShape, tokens_P2LTD: Tensor) -> Prefix:
        """Prefixes of all pairs for sampling, a few pairs at a time."""
        layout, constant = self.layout(work)
        parts = [self.mllm.prefill(part, layout, constant) for part in tokens_P2LTD.split(8)]
        joined = [
            (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
            for layer in zip(*(part.keys_values for part in parts), strict=True)
        ]
        return Prefix(joined, joined)

    def sample(self, work: WorkShape, prefix: Prefix, number: int, *, way: str = "graphs") -> Completions:
        """Answers by `loop` (the twin), `slots` or `graphs`."""
        layout, _ = self.layout(work)
        uniform = uniform_numbers(0, number, range(len(prefix.keys_values[0][0])), work.group_size, work.answer)
        if way == "loop":
            return sample(self.mllm, layout, prefix, uniform, temperature=POLICY.temperature, top_p=POLICY.top_p)
        key = f"{way}-{work}"
        if key not in self.samplers:
            self.samplers[key] = SlotSampler(
                self.mllm, layout, work.num_pairs, work.group_size, work.answer, temperature=POLICY.temperature,
                top_p=POLICY.top_p, graphs=way == "graphs" and self.device.type == "cuda", compiled=self.compiled,
            )  # fmt: skip
        return self.samplers[key](prefix, uniform)

    def gradient(self, work: WorkShape, tokens_P2LTD: Tensor, completions: Completions, pairs_at_once: int) -> Tensor:
        """Token gradients of all pairs, a few at a time; with their prefixes' forward pass."""
        layout, constant = self.layout(work)
        grads = []
        for first in range(0, len(tokens_P2LTD), pairs_at_once):
            tokens = tokens_P2LTD[first : first + pairs_at_once].detach().requires_grad_()
            rows = slice(first * work.group_size, (first + len(tokens)) * work.group_size)
            part = Completions(
                completions.token_ids_SR[rows], completions.support_SR[rows], completions.log_probs_S[rows],
                completions.ended_S[rows],
            )  # fmt: skip
            rewards = torch.arange(work.group_size, device=self.device).remainder(2).double().expand(len(tokens), -1)
            weights = answer_weights(group_advantages(rewards).flatten(), part.token_ids_SR >= 0)
            prefix = self.mllm.prefill(tokens, layout, constant)
            scored = score_shared(
                self.mllm, layout, prefix, tokens, part, weights, POLICY, pairs=range(len(tokens)), replay_support=True
            )  # fmt: skip
            assert scored.token_grads_P2LTD is not None
            grads.append(scored.token_grads_P2LTD)
        return torch.cat(grads)

    def step(self, work: WorkShape, number: int, *, pairs_at_once: int) -> dict[str, float]:
        """Images to updated tower; seconds of its phases."""
        side = 32 * work.grid_hw[0]
        generator = torch.Generator(self.device).manual_seed(number)
        shape = (2 * work.num_pairs, side, side, 3)
        images = torch.randint(256, shape, generator=generator, device=self.device, dtype=torch.uint8)
        clock = Clock(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            tokens_NLTD = self.tower(images).tokens_NLTD
        clock.lap("tower_forward")
        tokens_P2LTD = tokens_NLTD.detach().to(self.dtype).unflatten(0, (work.num_pairs, 2))
        prefix = self.prefixes(work, tokens_P2LTD)
        clock.lap("prefill")
        completions = self.sample(work, prefix, number)
        del prefix
        clock.lap("sample")
        grads = self.gradient(work, tokens_P2LTD, completions, pairs_at_once)
        clock.lap("gradient")
        tokens_NLTD.backward(grads.flatten(0, 1).to(tokens_NLTD.dtype) / max(1, int(completions.num_tokens_S.sum())))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clock.lap("tower_backward")
        assert bool(torch.isfinite(grads).all()) and bool(grads.any()), "gradient is zero or not finite"
        return clock.seconds | {"step": sum(clock.seconds.values())}


def make_tower(mllm: FrozenMLLM, device: torch.device) -> VisionTower:
    """A trainable tower of the MLLM's shape, float32, filled."""
    with torch.device(device):
        tower = VisionTower(mllm.model.config.vision_config.to_dict(), (0.5,) * 3, (0.5,) * 3)
    fill_(tower, 5)
    return tower


def _banned(mllm: FrozenMLLM) -> FrozenMLLM:
    # Answers of a random model end anywhere: here they have the length that is asked for.
    mllm.bias_V[list(mllm.end_ids)] = -torch.inf
    return mllm
