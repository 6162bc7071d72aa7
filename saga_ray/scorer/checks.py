"""What a scorer refuses to read, and what its caller refuses to take: one sentence each, said where the mistake was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

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


def check_result(result: ScoreResult, request: ScoreRequest, group_size: int) -> None:
    """Refuse a reply that is not of the request's pairs, or holds numbers that are none.

    Args:
        group_size: G of sampled answers; given ones say it themselves.

    Raises:
        BadReply: what is wrong with it.
    """
    num_answers = len(request.answers[0]) if request.answers else group_size
    wanted = _shapes(request, num_answers)
    there = result.tensors() | {"token_ids_PGR": result.token_ids_PGR}
    if there.keys() != wanted.keys():
        odd = ", ".join(sorted(there.keys() ^ wanted.keys()))
        raise BadReply(f"the reply holds less or more than what was asked: {odd}")
    for name, tensor in there.items():
        found = tuple(tensor.shape)
        length = slice(2) if name == "token_ids_PGR" else slice(None)  # R is the scorer's to say
        if found[length] != wanted[name] or (name == "token_ids_PGR" and len(found) != 3):
            raise BadReply(f"the reply's {name} has shape {found}, for {wanted[name]}")
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise BadReply(f"the reply's {name} holds NaN or infinity")
    sizes = [len(texts) for texts in result.texts_PG]
    if sizes != [num_answers] * len(request.pairs):
        raise BadReply(
            f"the reply holds texts of {sizes} answers, for {num_answers} of each of {len(request.pairs)} pairs"
        )


def _shapes(request: ScoreRequest, num_answers: int) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a reply, by the letters in its name; of `token_ids_PGR` without R."""
    _, num_levels, num_visual, width = request.tokens.tokens_NLTD.shape
    sizes = {"P": len(request.pairs), "G": num_answers, "2": 2, "L": num_levels, "T": num_visual, "D": width, "R": None}
    names = [each.name for each in fields(ScoreResult) if each.name not in ("texts_PG", "counters")]
    shapes = {name: [sizes[letter] for letter in name.rpartition("_")[2]] for name in names}
    if request.reference is None:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("reference_")}
    return {name: tuple(size for size in shape if size is not None) for name, shape in shapes.items()}
