"""What crosses to a scorer and back: rounding to the MLLM's dtype, and plain arrays.

`LocalScorer` and the remote one call the same functions, so that a tensor is rounded in the same place in both. numpy has
no bfloat16: such tensors travel as their 16 bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saga_ray.scorer.checks import BadReply
from saga_ray.types import ImagePair, ScoreOptions, ScoreRequest, ScoreResult, VisualTokens

_BITS = ":bfloat16"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
_GRADIENTS = ("token_grads_P2LTD", "reference_grads_P2LTD")


def wire_dtype(name: str) -> torch.dtype:
    """The dtype that a scorer's `describe()["dtype"]` names."""
    return _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, `bfloat16` or `float64`."""
    return str(dtype).removeprefix("torch.")


def rounded_request(request: ScoreRequest, dtype: torch.dtype) -> ScoreRequest:
    """The request with detached tokens in the MLLM's dtype: what the frozen MLLM would read in any case."""

    def rounded(tokens: VisualTokens) -> VisualTokens:
        return VisualTokens(tokens.tokens_NLTD.detach().to(dtype), tokens.grid_hw)

    reference = None if request.reference is None else rounded(request.reference)
    return replace(request, tokens=rounded(request.tokens), reference=reference)


def rounded_result(result: ScoreResult, dtype: torch.dtype) -> ScoreResult:
    """The result with its token gradients in another dtype: the MLLM's, as they travel, or that of the trainer's own tokens."""
    there = result.tensors()
    return replace(result, **{name: there[name].to(dtype) for name in _GRADIENTS if name in there})


def on_device(result: ScoreResult, device: torch.device) -> ScoreResult:
    """The result with its tensors beside the trainer's own."""
    return replace(result, **{name: tensor.to(device) for name, tensor in result.tensors().items()})


def _put(arrays: dict[str, np.ndarray], name: str, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        arrays[name + _BITS] = tensor.view(torch.uint16).numpy()
    else:
        arrays[name] = tensor.numpy()


def _take(arrays: Mapping[str, np.ndarray], name: str) -> Tensor:
    if name + _BITS in arrays:
        return _tensor(arrays[name + _BITS]).view(torch.bfloat16)
    return _tensor(arrays[name])


def _tensor(array: np.ndarray) -> Tensor:
    # Arrays from Ray's object store are read-only; torch tensors are not.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _text(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode("utf-8"), dtype=np.uint8)


def _value(array: np.ndarray) -> Any:
    return json.loads(array.tobytes().decode("utf-8"))


def request_to_arrays(request: ScoreRequest) -> dict[str, np.ndarray]:
    """A request as plain numpy arrays."""
    arrays: dict[str, np.ndarray] = {}
    _put(arrays, "tokens_NLTD", request.tokens.tokens_NLTD)
    if request.rewards_PG is not None:
        _put(arrays, "rewards_PG", request.rewards_PG)
    if request.reference is not None:
        _put(arrays, "reference_NLTD", request.reference.tokens_NLTD)
    arrays["header"] = _text(
        {
            "seed": request.seed,
            "micro_batch": request.micro_batch,
            "grid_hw": list(request.tokens.grid_hw),
            "pairs": [[pair.first, pair.second, bool(pair.same_class), pair.number] for pair in request.pairs],
            "options": asdict(request.options),
            "answers": request.answers,
        }
    )
    return arrays


def request_from_arrays(arrays: Mapping[str, np.ndarray]) -> ScoreRequest:
    """The inverse of `request_to_arrays`."""
    header = _value(arrays["header"])
    answers = header["answers"]
    grid_hw = tuple(header["grid_hw"])
    return ScoreRequest(
        seed=header["seed"],
        micro_batch=header["micro_batch"],
        pairs=tuple(ImagePair(*pair) for pair in header["pairs"]),
        tokens=VisualTokens(_take(arrays, "tokens_NLTD"), grid_hw),
        options=ScoreOptions(**header["options"]),
        answers=None if answers is None else tuple(map(tuple, answers)),
        rewards_PG=_take(arrays, "rewards_PG") if "rewards_PG" in arrays else None,
        reference=VisualTokens(_take(arrays, "reference_NLTD"), grid_hw) if "reference_NLTD" in arrays else None,
    )


def result_to_arrays(result: ScoreResult) -> dict[str, np.ndarray]:
    """A result as plain numpy arrays."""
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in result.tensors().items():
        _put(arrays, name, tensor)
    arrays["header"] = _text({"texts_PG": result.texts_PG, "counters": dict(result.counters)})
    return arrays


def result_from_arrays(arrays: Mapping[str, np.ndarray]) -> ScoreResult:
    """The inverse of `result_to_arrays`.

    Raises:
        BadReply: for arrays that are not a whole result.
    """
    try:
        header = _value(arrays["header"])
        names = {name.removesuffix(_BITS) for name in arrays} - {"header"}
        tensors = {name: _take(arrays, name) for name in names}
        texts_PG = tuple(map(tuple, header["texts_PG"]))
        return ScoreResult(texts_PG=texts_PG, counters=header["counters"], **tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise BadReply(f"the reply is not a whole result: {error}") from error
