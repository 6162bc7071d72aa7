"""Which way answers are written: the plain loop, or slots with CUDA graphs where there is a GPU."""

from __future__ import annotations

import weakref

import numpy as np
from torch import nn

from saga_ray.config import RunConfig
from saga_ray.mllm.frozen import FrozenMLLM, Layout, Prefix
from saga_ray.mllm.sampling import Completions, sample
from saga_ray.mllm.slots import SlotSampler, fits_slots

_HOLDERS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Sampler]] = weakref.WeakKeyDictionary()
"""Of every model, the sampler that has its slots."""


class Sampler:
    """Writes answers by the configured way; both give the same ones, but for the order of the arithmetic.

    Raises:
        ValueError: if slots are asked for and the MLLM does not fit them.
    """

    def __init__(self, mllm: FrozenMLLM, config: RunConfig) -> None:
        self._mllm, self._grpo = mllm, config.grpo
        wanted = config.scorer.sampler
        if wanted == "slots" and not fits_slots(mllm):
            raise ValueError(
                "scorer.sampler: slots need an MLLM on one device whose layers see the whole prompt; this one has sliding "
                "windows or angles that depend on the length (rope_type dynamic or longrope), or lies on several; set "
                "scorer.sampler=auto"
            )
        on_gpu = mllm.device.type == "cuda"
        # Idle slots change the shapes of products, and with them last bits.
        automatic = on_gpu and not config.scorer.deterministic and fits_slots(mllm)
        self.way = "slots" if wanted == "slots" or (wanted == "auto" and automatic) else "loop"
        self._graphs, self._compiled = on_gpu, on_gpu and config.mllm.compile
        self._made: tuple[Layout, SlotSampler] | None = None

    def __call__(self, layout: Layout, prefix: Prefix, uniform_PGR: np.ndarray) -> Completions:
        """As `mllm.sampling.sample`."""
        policy = {"temperature": self._grpo.temperature, "top_p": self._grpo.top_p}
        if self.way == "loop":
            return sample(self._mllm, layout, prefix, uniform_PGR, **policy)
        self._hold()
        num_pairs, group_size, max_new = uniform_PGR.shape
        if self._made is None or self._made[0] is not layout or self._made[1].num_slots < num_pairs:
            self._made = None  # before the next one is made
            made = SlotSampler(
                self._mllm, layout, num_pairs, group_size, max_new,
                graphs=self._graphs, compiled=self._compiled, **policy,
            )  # fmt: skip
            self._made = (layout, made)
        return self._made[1](prefix, uniform_PGR)

    def _hold(self) -> None:
        """One sampler at a time has slots: their keys and values are most of a GPU's memory beside the weights.

        Engines of one model that take turns, as those of runs with different prompts do in a replica, make theirs anew.
        """
        holder = _HOLDERS.get(self._mllm.model, lambda: None)()
        if holder is not None and holder is not self:
            holder._made = None
        _HOLDERS[self._mllm.model] = weakref.ref(self)
