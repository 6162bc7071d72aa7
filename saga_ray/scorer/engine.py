"""The scorer itself: sample, judge and differentiate pairs of images, whatever process it lives in."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from saga_ray.config import RunConfig
from saga_ray.mllm.answers import Answer
from saga_ray.mllm.filling import fill_in, given_in
from saga_ray.mllm.frozen import FrozenMLLM, Layout, Prefix
from saga_ray.mllm.gradients import Policy
from saga_ray.mllm.prompt import Prompt, prompt_ids, prompt_texts
from saga_ray.mllm.sampling import Completions, given, uniform_numbers
from saga_ray.mllm.template import Template
from saga_ray.mllm.text import TokenTexts
from saga_ray.rl.rewards import verdict_rewards
from saga_ray.scorer.checks import Reads, check_request
from saga_ray.scorer.determinism import deterministic
from saga_ray.scorer.differentiate import Differentiated, Differentiator, Judged, Reference
from saga_ray.scorer.judge import Judge
from saga_ray.scorer.length import check_length
from saga_ray.scorer.parts import join_requests, origins, split_result
from saga_ray.scorer.prompt import longest_answer
from saga_ray.scorer.sampler import Sampler
from saga_ray.scorer.signals import Signal, expected_reward, lesson, sampled_reward
from saga_ray.scorer.wire import dtype_name
from saga_ray.types import ImagePair, ScoreRequest, ScoreResult

MAX_LAYOUTS = 4


@dataclass(frozen=True)
class _Chunk:
    """Result of some pairs of a request, tensors of their full shape but for R."""

    completions: Completions
    texts: list[str]
    answers: list[Answer]
    signal: Signal
    found: Differentiated
    reference: Reference | None
    num_taught_P: Tensor


class ScoringEngine:
    """A frozen MLLM with its prompt and the sampler's settings; reusable for any number of requests.

    Args:
        path: `shared` runs a pair's prompt once; `naive` computes gradients from G copies, for tests and comparison.
    """

    def __init__(
        self, mllm: FrozenMLLM, prompt: Prompt, config: RunConfig, *, path: Literal["shared", "naive"] = "shared"
    ) -> None:
        if config.scorer.deterministic:
            # The two-part attention's backward pass on GPUs adds in no fixed order.
            mllm = replace(mllm, split=False)
        self.mllm, self.prompt, self.config, self.path = mllm, prompt, config, path
        self.texts = prompt_texts(prompt, mllm.tokenizer, mllm.marks)
        self.max_new_tokens = longest_answer(prompt, config)
        self.template = self._template()
        self.capture_layer = mllm.full_layer(attention_layer(config.alignment.layer_depth, mllm.num_layers))
        self._judge = Judge(TokenTexts(mllm.tokenizer), prompt.verdict_key, config.alignment.rows)
        self._check_verdicts()
        self._sample = Sampler(mllm, config)
        policy = Policy(config.grpo.temperature, config.grpo.top_p)
        self._differentiate = Differentiator(mllm, policy, path, self.capture_layer, config.grpo.reference_kl)
        self._layouts: dict[tuple[int, int], tuple[Layout, list[tuple[Tensor, Tensor]]]] = {}
        self.reads = Reads(mllm.num_levels, mllm.width)
        self._weights, self._code = mllm.weights_hash(), code_hash()
        ids = prompt_ids(mllm.tokenizer, self.texts, mllm.model.config.image_token_id)
        self._num_prompt_tokens = sum(map(len, ids)) + 2 * len(mllm.family.closing_ids(mllm.model.config))
        self._process = f"{socket.gethostname()}:{os.getpid()}"

    def describe(self) -> dict[str, str]:
        """Identity: what decides the numbers, and where they are computed; and what a request must hold and costs."""
        return {
            "weights": self._weights,
            "prompt": prompt_hash(self.prompt, self.texts, self.max_new_tokens),
            "code": self._code,
            "levels": str(self.reads.num_levels),
            "width": str(self.reads.width),
            "prompt_tokens": str(self._num_prompt_tokens),
            "max_new_tokens": str(self.max_new_tokens),
            "dtype": dtype_name(self.mllm.dtype),
            "device": self.mllm.device.type,
            "path": self.path,
            "process": self._process,
        }

    def score(self, request: ScoreRequest) -> ScoreResult:
        """Sample (or take the given) answers, judge them, and differentiate those of pairs that disagree.

        Raises:
            ValueError: for what `checks.check_request` refuses, or a prompt that is too long for the MLLM.
        """
        check_request(request, self.reads)
        with deterministic(self.config):
            return self._score(request)

    def score_together(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score requests of one `parts.kind` in the same passes; the results are those of each alone."""
        whole = self.score(join_requests(requests))
        return split_result(whole, [len(request.pairs) for request in requests], self.mllm.end_ids)

    def _score(self, request: ScoreRequest) -> ScoreResult:
        seconds: Counter[str] = Counter()
        tokens_NLTD = request.tokens.tokens_NLTD.detach().to(self.mllm.device, self.mllm.dtype)
        reference_NLTD = None
        if request.reference is not None:
            reference_NLTD = request.reference.tokens_NLTD.detach().to(self.mllm.device, self.mllm.dtype)
        layout, constant = self._layout(request.tokens.grid_hw)
        # Alone, a pair's shapes depend on the pair only, and so does the last bit of every product.
        step = 1 if self.config.scorer.deterministic else self.config.scorer.pairs_per_chunk
        chunks = [
            self._score_chunk(
                request, slice(start, start + step), tokens_NLTD, reference_NLTD, layout, constant, seconds
            )
            for start in range(0, len(request.pairs), step)
        ]
        return self._joined(request, chunks, seconds)

    def _score_chunk(
        self,
        request: ScoreRequest,
        chosen: slice,
        tokens_NLTD: Tensor,
        reference_NLTD: Tensor | None,
        layout: Layout,
        constant: list[tuple[Tensor, Tensor]],
        seconds: Counter[str],
    ) -> _Chunk:
        pairs, options = request.pairs[chosen], request.options
        index_P2 = torch.tensor([[pair.first, pair.second] for pair in pairs], device=tokens_NLTD.device)
        wants_graph = options.gradient or reference_NLTD is not None
        tokens_P2LTD = tokens_NLTD[index_P2].requires_grad_(wants_graph)
        with self._timed(seconds, "prefill"), torch.set_grad_enabled(wants_graph and self.path == "shared"):
            prefix = self.mllm.prefill(tokens_P2LTD, layout, constant)
        with self._timed(seconds, "sample"):
            completions = self._completions(request, chosen, layout, prefix)
        texts, answers = self._judge.read(completions)
        rewards_PG = self._rewards(request, chosen, pairs, answers)
        rows: list[tuple[list[int], list[int]]] = [([], [])] * len(answers)
        if options.attention:
            rows = self._judge.attention_rows(completions, answers, rewards_PG)
        signal = sampled_reward(completions, rewards_PG, self.config.grpo.min_std, self.config.grpo.normalisation)
        taught_P = torch.zeros(len(pairs), dtype=torch.int64)
        judged = Judged(layout, prefix, tokens_P2LTD, completions, signal, rows, request.answers is None)
        with self._timed(seconds, "gradient"):
            if options.lesson:
                values = self._judge.value_tokens(completions, answers)
                signal = lesson(completions, len(pairs), values)
                taught_P = torch.tensor([len(tokens) for tokens in values]).view(len(pairs), -1).sum(dim=1)
            elif self.config.grpo.reward == "expected" and request.rewards_PG is None:
                signal = self._expected(judged, pairs, answers)
            judged = replace(judged, signal=signal)
            found = self._differentiate(judged, options, keep_graph=reference_NLTD is not None)
            reference = None
            if reference_NLTD is not None:
                with torch.no_grad():
                    initial = self.mllm.prefill(reference_NLTD[index_P2], layout, constant)
                reference = self._differentiate.reference(judged, initial)
        return _Chunk(completions, texts, answers, signal, found, reference, taught_P)

    def _expected(self, judged: Judged, pairs: Sequence[ImagePair], answers: list[Answer]) -> Signal:
        same_P = [pair.same_class for pair in pairs]
        verdicts = self._judge.verdicts(judged.completions, answers, same_P)
        corrected = verdicts.corrected(judged.completions, len(pairs))
        log_probs_SR = self._differentiate.log_probs(judged, corrected)
        grpo, drawn_SR = self.config.grpo, judged.completions.drawn_SR
        return expected_reward(corrected, log_probs_SR, verdicts, drawn_SR, grpo.min_std, grpo.normalisation)

    def _completions(self, request: ScoreRequest, chosen: slice, layout: Layout, prefix: Prefix) -> Completions:
        if request.answers is not None:
            texts = [text for group in request.answers[chosen] for text in group]
            if self.template is not None:
                return given_in(self.template, texts, self.mllm.device)
            return given(self.mllm, texts)
        grpo = self.config.grpo
        keys = zip(origins(request)[chosen], request.pairs[chosen], strict=True)
        uniform = np.concatenate(
            [uniform_numbers(*origin, [pair.number], grpo.group_size, self.max_new_tokens) for origin, pair in keys]
        )
        if self.template is not None:
            policy = {"temperature": grpo.temperature, "top_p": grpo.top_p}
            return fill_in(self.mllm, layout, prefix, uniform, self.template, **policy)
        return self._sample(layout, prefix, uniform)

    def _rewards(
        self, request: ScoreRequest, chosen: slice, pairs: Sequence[ImagePair], answers: list[Answer]
    ) -> Tensor:
        if request.rewards_PG is not None:
            return request.rewards_PG[chosen].double().to(self.mllm.device)
        verdicts_PG = torch.tensor([answer.verdict for answer in answers], device=self.mllm.device)
        same_P = torch.tensor([pair.same_class for pair in pairs], device=self.mllm.device)
        return verdict_rewards(verdicts_PG.view(len(pairs), -1), same_P)

    def _joined(self, request: ScoreRequest, chunks: list[_Chunk], seconds: Counter[str]) -> ScoreResult:
        num_pairs = len(request.pairs)
        num_answers = len(request.answers[0]) if request.answers else self.config.grpo.group_size
        longest = max((c.completions.token_ids_SR.shape[1] for c in chunks), default=0)
        ids_SR = torch.full((num_pairs * num_answers, longest), -1)
        start = 0
        for chunk in chunks:
            part = chunk.completions.token_ids_SR
            ids_SR[start : start + len(part), : part.shape[1]] = part.cpu()
            start += len(part)
        _, num_levels, num_visual, width = request.tokens.tokens_NLTD.shape

        def joined(name: str, *empty: int, dtype: torch.dtype = torch.float64) -> Tensor:
            holders = [
                next(h for h in (c, c.signal, c.found, c.reference, c.completions) if hasattr(h, name)) for c in chunks
            ]
            parts = [getattr(holder, name).cpu() for holder in holders]
            return torch.cat(parts) if parts else torch.zeros(0, *empty, dtype=dtype)

        answers = [answer for chunk in chunks for answer in chunk.answers]
        texts = [text for chunk in chunks for text in chunk.texts]
        ended = [e for chunk in chunks for e in chunk.completions.ended_S.tolist()]
        verdicts_PG = torch.tensor([a.verdict for a in answers], dtype=torch.int8).view(num_pairs, num_answers)
        contributes_P = joined("contributes_P", dtype=torch.bool)
        images = (2, num_levels, num_visual, width)
        asked_reference = request.reference is not None
        num_tokens_PG = joined("num_drawn_S", dtype=torch.int64).view(num_pairs, num_answers)
        counters: dict[str, float | str] = {
            "path": self.path,
            "process": self._process,
            "num_tokens": int(num_tokens_PG.sum()),
            "num_fed": int((ids_SR >= 0).sum() - num_tokens_PG.sum()),
            "malformed": int((verdicts_PG < 0).sum()),
            "truncated": len(ended) - sum(ended),
            "zero_advantage_pairs": int((~contributes_P).sum()),
            **{f"seconds/{stage}": seconds[stage] for stage in ("prefill", "sample", "gradient")},
        }
        return ScoreResult(
            texts_PG=tuple(tuple(texts[p * num_answers : (p + 1) * num_answers]) for p in range(num_pairs)),
            token_ids_PGR=ids_SR.view(num_pairs, num_answers, longest),
            num_tokens_PG=num_tokens_PG,
            log_probs_PG=joined("log_probs_PG", num_answers),
            rewards_PG=joined("rewards_PG", num_answers),
            advantages_PG=joined("advantages_PG", num_answers),
            well_formed_PG=verdicts_PG >= 0,
            verdicts_PG=verdicts_PG,
            contributes_P=contributes_P,
            loss_P=joined("loss_P"),
            num_taught_P=joined("num_taught_P", dtype=torch.int64),
            token_grads_P2LTD=joined("token_grads_P2LTD", *images, dtype=self.mllm.dtype),
            attention_sum_P2T=joined("attention_sum_P2T", 2, num_visual, dtype=self.mllm.logit_dtype),
            attention_count_P2=joined("attention_count_P2", 2, dtype=torch.int64),
            counters=counters,
            reference_kl_P=joined("reference_kl_P") if asked_reference else None,
            reference_grads_P2LTD=(
                joined("reference_grads_P2LTD", *images, dtype=self.mllm.dtype) if asked_reference else None
            ),
        )

    def _layout(self, grid_hw: tuple[int, int]) -> tuple[Layout, list[tuple[Tensor, Tensor]]]:
        """Layout and constant keys and values for images of one size; a few sizes are remembered."""
        if grid_hw not in self._layouts:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.pop(next(iter(self._layouts)))
            layout = self.mllm.layout(self.texts, grid_hw)
            longest = getattr(self.mllm.model.config.get_text_config(), "max_position_embeddings", None)
            check_length(int(layout.positions_3C.max()) + 1, self.max_new_tokens, longest, self.mllm.folder)
            self._layouts[grid_hw] = (layout, self.mllm.constant_prefix(layout))
        return self._layouts[grid_hw]

    def _template(self) -> Template | None:
        """The form of the answers, if the run asks for it."""
        if self.prompt.answers != "template":
            return None
        template = Template(self.mllm, self.prompt)
        if template.longest > self.max_new_tokens:
            raise ValueError(
                f"grpo.max_new_tokens: {self.max_new_tokens} is less than the {template.longest} tokens of the longest template answer; "
                f"raise it, lower prompt.value_tokens, or ask for fewer attributes"
            )
        return template

    @property
    def knows_right_verdicts(self) -> bool:
        """Whether an expected reward can put the right verdict in the place of the written one; it would be 0 otherwise."""
        return self.template is not None or self._judge.can_correct_verdicts()

    def _check_verdicts(self) -> None:
        if self.config.grpo.reward == "expected" and not self.knows_right_verdicts:
            raise ValueError(
                f'grpo.reward: \'expected\' needs tokens for "yes" and "no" that can take each other\'s place, which the tokenizer '
                f"in {self.mllm.folder} lacks; set grpo.reward=sampled, or prompt.answers=template"
            )

    @contextmanager
    def _timed(self, seconds: Counter[str], stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        if self.mllm.device.type == "cuda":
            torch.cuda.synchronize(self.mllm.device)
        seconds[stage] += perf_counter() - start  # type: ignore[assignment]


def attention_layer(depth: float, num_layers: int) -> int:
    """0-based number of the decoder layer at a relative depth.

    Layers are counted from 1 as in the paper: 26 / 36 of 36 layers is the 26th, number 25 here.
    """
    return min(max(round(depth * num_layers), 1), num_layers) - 1


def prompt_hash(prompt: Prompt, texts: Sequence[str], max_new_tokens: int) -> str:
    """16 hex digits over what decides the answers beside the weights: the texts around the images, and the answers' form.

    Args:
        texts: before, between and after the images, as the MLLM reads them.
        max_new_tokens: `longest_answer`.
    """
    form = {
        "variant": prompt.variant,
        "verdict": prompt.verdict_key,
        "attributes": list(prompt.attributes.items()),  # allowed values are what template answers are drawn from
        "answers": prompt.answers,
        "value_tokens": prompt.value_tokens,
        "max_new_tokens": max_new_tokens,
    }
    return hashlib.sha256(json.dumps([list(texts), form]).encode("utf-8")).hexdigest()[:16]


def code_hash() -> str:
    """16 hex digits over the source of everything that decides a score."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for folder in ("mllm", "mllm/families", "rl", "scorer"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
