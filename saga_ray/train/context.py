"""What a training loop knows of its fellow workers: rank, sums over all ranks, small messages, reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class RunContext(Protocol):
    """The only way in which ranks meet; every rank calls the same methods in the same order."""

    rank: int
    world_size: int
    device: torch.device

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum each tensor over all ranks; equal results, bit for bit, on every rank."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (anything that JSON holds), in the order of ranks."""
        ...

    def report(self, metrics: Mapping[str, float | str]) -> None:
        """Numbers of a finished step, for whoever watches the run."""
        ...


class LocalContext:
    """One process alone."""

    rank = 0
    world_size = 1

    def __init__(
        self, device: torch.device | None = None, on_report: Callable[[Mapping[str, float | str]], None] | None = None
    ) -> None:
        self.device = device or default_device()
        self._on_report = on_report

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors themselves."""
        return list(tensors)

    def gather(self, value: Any) -> list[Any]:
        """The value alone, as JSON would return it."""
        return [json.loads(json.dumps(value))]

    def report(self, metrics: Mapping[str, float | str]) -> None:
        """Hand the numbers to the callback, if there is one."""
        if self._on_report is not None:
            self._on_report(metrics)


class TorchContext:
    """A rank of an initialised torch.distributed process group (gloo or nccl)."""

    def __init__(
        self, device: torch.device, on_report: Callable[[Mapping[str, float | str]], None] | None = None
    ) -> None:
        import torch.distributed as distributed

        self._distributed = distributed
        self.rank = distributed.get_rank()
        self.world_size = distributed.get_world_size()
        self.device = device
        self._on_report = on_report

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum over all ranks, in one message per dtype."""
        out: list[Tensor] = list(tensors)
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[place].detach().reshape(-1) for place in places]).to(self.device)
            self._distributed.all_reduce(flat)
            parts = flat.split([tensors[place].numel() for place in places])
            for place, part in zip(places, parts, strict=True):
                out[place] = part.view(tensors[place].shape).to(tensors[place].device)
        return out

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value as JSON; nothing is pickled."""
        data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        length = torch.tensor([len(data)], device=self.device)
        lengths = [torch.zeros_like(length) for _ in range(self.world_size)]
        self._distributed.all_gather(lengths, length)
        longest = max(int(each) for each in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        padded[: len(data)] = data
        everyone = [torch.zeros_like(padded) for _ in range(self.world_size)]
        self._distributed.all_gather(everyone, padded)
        return [json.loads(bytes(each[: int(size)].tolist())) for each, size in zip(everyone, lengths, strict=True)]

    def report(self, metrics: Mapping[str, float | str]) -> None:
        """Hand the numbers to the callback, if there is one."""
        if self._on_report is not None:
            self._on_report(metrics)


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def gather_rows(context: RunContext, rows: Tensor) -> Tensor:
    """Rows of all ranks below each other, in the order of ranks; every rank brings equally many.

    Each rank writes its rows into zeros and everything is summed: exact, since all other terms are zero.
    """
    if context.world_size == 1:
        return rows
    num = rows.shape[0]
    everyone = rows.new_zeros(context.world_size * num, *rows.shape[1:])
    everyone[context.rank * num : (context.rank + 1) * num] = rows
    return context.all_reduce_sum([everyone])[0]
