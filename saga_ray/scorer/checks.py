"""What a scorer refuses to read, and what its caller refuses to take: one sentence each, said where the mistake was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saga_ray.types import ScoreRequest, ScoreResult


class BadReply(Exception):
    """A scorer's answer that no pair can have; another attempt may give a right one."""


@dataclass(frozen=True)
class Reads:
    """Shape of the visual tokens that an MLLM reads: L and D."""

    num_levels: int
    width: int

    @classmethod
    def told(cls, identity: Mapping[str, str]) -> Reads:
        """From a scorer's `describe()`."""
        return cls(int(identity["levels"]), int(identity["width"]))


def check_request(request: ScoreRequest, reads: Reads) -> None:
    """Refuse a request that cannot be scored.

    Raises:
        ValueError: the sentence.
    """
    _check_tokens("tokens", request.tokens.tokens_NLTD, request.tokens.grid_hw, reads)
    if request.reference is not None:
        _check_tokens("reference tokens", request.reference.tokens_NLTD, request.reference.grid_hw, reads)
        if len(request.reference) != len(request.tokens):
            raise ValueError(
                f"reference: {len(request.reference)} images for {len(request.tokens)} that are shown; give the same images"
            )
    for pair in request.pairs:
        for position in (pair.first, pair.second):
            if not 0 <= position < len(request.tokens):
                raise ValueError(
                    f"pairs: pair {pair.number} shows image {position}, but the request holds {len(request.tokens)} images; "
                    f"give a position from 0 to {len(request.tokens) - 1}"
                )
    if request.options.lesson and request.answers is None:
        raise ValueError("answers: missing; a lesson needs the answers that are to be learned")
    if request.answers is not None:
        sizes = {len(group) for group in request.answers}
        if len(request.answers) != len(request.pairs) or len(sizes) > 1 or 0 in sizes:
            raise ValueError(
                f"answers: {len(request.answers)} groups of {sorted(sizes)} answers for {len(request.pairs)} pairs; "
                f"give one group per pair, all of one size"
            )
    _check_rewards(request)


def _check_tokens(what: str, tokens_NLTD: Tensor, grid_hw: tuple[int, int], reads: Reads) -> None:
    if not tokens_NLTD.dtype.is_floating_point:
        raise ValueError(
            f"encoder: the visual {what} are {tokens_NLTD.dtype}; give float32, bfloat16 or float64, as `encode_tokens` does"
        )
    if tokens_NLTD.device.type == "meta":
        raise ValueError(f"encoder: the visual {what} are on device meta and hold no numbers; move them to cpu or cuda")
    shape = tuple(tokens_NLTD.shape)
    wanted = (reads.num_levels, grid_hw[0] * grid_hw[1], reads.width)
    if len(shape) != 4 or shape[1:] != wanted:
        raise ValueError(
            f"mllm.path: visual {what} of shape {shape} do not fit this MLLM, which reads (images, levels, tokens, width) = "
            f"(any, {wanted[0]}, {wanted[1]}, {wanted[2]}); build encoder and scorer from the same mllm.path"
        )
    if not bool(torch.isfinite(tokens_NLTD).all()):
        raise ValueError(f"encoder: the visual {what} hold NaN or infinity; lower optim.lr_tower or optim.clip_norm")


def _check_rewards(request: ScoreRequest) -> None:
    rewards_PG = request.rewards_PG
    if rewards_PG is None:
        return
    if request.answers is None:
        raise ValueError("rewards: given without answers; leave them out, or give the answers that earned them")
    wanted = (len(request.pairs), len(request.answers[0]) if request.answers else 0)
    if rewards_PG.ndim != 2 or (request.pairs and tuple(rewards_PG.shape) != wanted):
        raise ValueError(
            f"rewards: shape {tuple(rewards_PG.shape)} for {wanted} pairs and answers; give one per answer"
        )
    if not bool(torch.isfinite(rewards_PG).all()):
        raise ValueError("rewards: NaN or infinity among them; give numbers")


def check_result(result: ScoreResult, request: ScoreRequest) -> None:
    """Refuse a reply that is not of the request's pairs, or holds numbers that are none.

    Raises:
        BadReply: what is wrong with it.
    """
    num_pairs, shape = len(request.pairs), tuple(request.tokens.tokens_NLTD.shape[1:])
    per_image = {"token_grads_P2LTD", "reference_grads_P2LTD"}
    for name, tensor in result.tensors().items():
        found = tuple(tensor.shape)
        if found[:1] != (num_pairs,) or (name in per_image and found[1:] != (2, *shape)):
            raise BadReply(f"the reply's {name} has shape {found}, for {num_pairs} pairs of tokens {shape}")
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise BadReply(f"the reply's {name} holds NaN or infinity")
    if len(result.texts_PG) != num_pairs or (result.reference_kl_P is None) != (request.reference is None):
        raise BadReply(
            f"the reply holds texts of {len(result.texts_PG)} pairs, for {num_pairs}, or not all that was asked"
        )
