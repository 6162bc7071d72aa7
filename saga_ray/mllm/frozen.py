"""The frozen MLLM: where its parts are, how a pair's prompt is laid out, and one pass through its decoder.

Layout of a prompt, equal for all pairs of a run, so that nothing is ever padded on the left:

    [text before image 1][T tokens of image 1][between][T tokens of image 2][text after]
     computed once        `----- the pair's prefix, without its last token -----'[last]

What a family puts around an image (start and end tokens, LLaVA-OneVision's newline) belongs to the texts.

Every answer is fed [last prompt token, r_1 .. r_{R-1}] and predicts r_1 .. r_R, in sampling and scoring alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from saga_ray.mllm.attention import Memory, PrefixMemory
from saga_ray.mllm.families import Family, family_named
from saga_ray.mllm.marks import ImageMarks
from saga_ray.mllm.prompt import prompt_ids


@dataclass(frozen=True)
class Layout:
    """Ids and positions of a prompt around two images of T tokens each."""

    before_ids: tuple[int, ...]
    between_ids: tuple[int, ...]
    after_ids: tuple[int, ...]
    grid_hw: tuple[int, int]
    positions_3C: Tensor
    """int64, of the whole prompt; three equal rows where a family has one position per token."""

    @property
    def num_visual(self) -> int:
        """T."""
        return self.grid_hw[0] * self.grid_hw[1]

    @property
    def image_columns(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(start, stop) of both images in the prompt."""
        first = len(self.before_ids)
        second = first + self.num_visual + len(self.between_ids)
        return (first, first + self.num_visual), (second, second + self.num_visual)

    def prompt_ids(self, image_id: int) -> list[int]:
        """All ids, placeholders included."""
        image = [image_id] * self.num_visual
        return [*self.before_ids, *image, *self.between_ids, *image, *self.after_ids]


@dataclass(frozen=True)
class Prefix:
    """Keys and values (P, K, C, d) per layer of P prompts without their last token; `made` is the pair's part, with graph."""

    keys_values: list[tuple[Tensor, Tensor]]
    made: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FrozenMLLM:
    """Model, tokenizer and processor of a loaded folder; no parameter takes a gradient."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    processor: ProcessorMixin | None
    """None where the library cannot load it; the scorer needs the tokenizer alone."""
    folder: Path
    split: bool = False
    """Whether attention over a shared prefix takes two calls (`mllm.two_part`): fast on GPUs, and it holds less everywhere."""

    @cached_property
    def family(self) -> Family:
        """What is particular to this model's family."""
        return family_named(self.model.config.model_type)

    @cached_property
    def marks(self) -> ImageMarks:
        """What stands for an image in its chat template, and around it in a prompt."""
        return self.family.marks(self.model.config, self.tokenizer)

    @property
    def decoder(self) -> nn.Module:
        """Layers, final norm and rotary embedding of the language model."""
        return self.family.decoder(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_tokens.weight.device

    @property
    def num_levels(self) -> int:
        """L: input embeddings and DeepStack features."""
        return self.family.num_levels(self.model.config)

    @property
    def width(self) -> int:
        """D."""
        return self.model.config.get_text_config().hidden_size

    @property
    def num_layers(self) -> int:
        return self.model.config.get_text_config().num_hidden_layers

    @property
    def layer_kinds(self) -> list[str]:
        """`full_attention` of layers that see the whole prompt, another word of those that see a window of it."""
        kinds = getattr(self.model.config.get_text_config(), "layer_types", None)
        return list(kinds or ["full_attention"] * self.num_layers)[: self.num_layers]

    def full_layer(self, layer: int) -> int:
        """The layer nearest to `layer`, the earlier of two, that sees the whole prompt and not a window of it."""
        full = [number for number, kind in enumerate(self.layer_kinds) if kind == "full_attention"]
        return min(full or [layer], key=lambda number: abs(number - layer))

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer; the first is written behind given answers. Nothing else of the generation config is used."""
        ids = [self.tokenizer.eos_token_id]
        stated = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        ids += stated if isinstance(stated, list) else [stated]
        return tuple(dict.fromkeys(int(i) for i in ids if i is not None))

    @cached_property
    def bias_V(self) -> Tensor:
        """-inf for ids that no answer may hold (image and video placeholders, rows without a token), else 0."""
        config = self.model.config
        bias_V = torch.zeros(config.get_text_config().vocab_size, dtype=self.logit_dtype, device=self.device)
        bias_V[self.family.banned_ids(config)] = -torch.inf
        bias_V[len(self.tokenizer) :] = -torch.inf
        return bias_V

    @property
    def logit_dtype(self) -> torch.dtype:
        """float32 whatever the model's precision; float64 for a float64 model."""
        return torch.promote_types(self.dtype, torch.float32)

    def logits(self, hidden_SD: Tensor, temperature: float) -> Tensor:
        """(rows, V): logits of the policy, banned ids at -inf, temperature included."""
        logits_SV = self.model.lm_head(hidden_SD).to(self.device, self.logit_dtype)
        return (logits_SV + self.bias_V) / temperature

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of the ids of texts."""
        return self.family.embed(self.model, ids)

    def run(self, hidden_SRD: Tensor, positions_3R: Tensor, memory: Memory, deepstack: Sequence[Tensor] = ()) -> Tensor:
        """Rows through all layers and the final norm; DeepStack features are added after layers 0, 1, ...

        Positions are those of all rows, (3, R), or of each, (3, S, R).
        """
        rotary = self.family.rotary(self.decoder, hidden_SRD, positions_3R)
        for number, layer in enumerate(self.decoder.layers):
            hidden_SRD = layer(hidden_SRD, position_embeddings=rotary[number], attention_mask=None, memory=memory)
            if number < len(deepstack):
                # A model may be split over several devices.
                hidden_SRD = hidden_SRD + deepstack[number].to(hidden_SRD.device)
        return self.decoder.norm(hidden_SRD).to(self.device)

    def layout(self, texts: tuple[str, str, str], grid_hw: tuple[int, int]) -> Layout:
        """Tokenise the prompt's three texts and compute positions with the model's own rule."""
        config = self.model.config
        before, between, after = prompt_ids(self.tokenizer, texts, config.image_token_id)
        closing = self.family.closing_ids(config)
        draft = Layout(before, closing + between, closing + after, grid_hw, torch.empty(3, 0, dtype=torch.int64))
        ids_C = torch.tensor(draft.prompt_ids(config.image_token_id))
        positions_3C = self.family.positions(self.model, ids_C, grid_hw)
        return replace(draft, positions_3C=positions_3C.to(self.device))

    @torch.no_grad()
    def constant_prefix(self, layout: Layout) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the text before the first image: the same for every pair and every encoder."""
        if not layout.before_ids:
            return []
        memory = PrefixMemory([])
        ids = torch.tensor([layout.before_ids], device=self.device)
        self.run(self.embed(ids), layout.positions_3C[:, : ids.shape[1]], memory)
        return memory.made

    def prefill(self, tokens_P2LTD: Tensor, layout: Layout, constant: list[tuple[Tensor, Tensor]]) -> Prefix:
        """Run the pairs' part of the prompt once; with graph if the tokens ask for one and autograd is on."""
        num_pairs = len(tokens_P2LTD)
        between, after = (
            self.embed(torch.tensor(ids, dtype=torch.int64, device=self.device)).expand(num_pairs, -1, -1)
            for ids in (layout.between_ids, layout.after_ids[:-1])
        )

        def around(first_PTD: Tensor, second_PTD: Tensor, between: Tensor, after: Tensor) -> Tensor:
            return torch.cat((first_PTD, between, second_PTD, after), dim=1)

        levels = [tokens_P2LTD[:, :, level] for level in range(tokens_P2LTD.shape[2])]
        hidden = around(levels[0][:, 0], levels[0][:, 1], between, after)
        # Zero at text rows: adding them there changes nothing.
        zeros = torch.zeros_like(between), torch.zeros_like(after)
        deepstack = [around(level[:, 0], level[:, 1], *zeros) for level in levels[1:]]
        start = len(layout.before_ids)
        blocks = [(first - start, stop - start) for first, stop in layout.image_columns]
        memory = PrefixMemory(constant, blocks=blocks if self.family.bidirectional_images else (), split=self.split)
        self.run(hidden, layout.positions_3C[:, start:-1], memory, deepstack)
        if not constant:
            return Prefix(memory.made, memory.made)
        whole = [
            tuple(torch.cat((b.expand(num_pairs, -1, -1, -1), m), dim=2) for b, m in zip(before, made, strict=True))
            for before, made in zip(constant, memory.made, strict=True)
        ]
        return Prefix(whole, memory.made)  # type: ignore[arg-type]

    def answer_positions(self, layout: Layout, num_rows: int, start: int = 0) -> Tensor:
        """(3, rows): positions of an answer's rows; row 0 is the last prompt token, all three axes go on together."""
        rows = torch.arange(start, start + num_rows, device=self.device)
        return layout.positions_3C[:, -1:].amax() + rows.expand(3, -1)

    def weights_hash(self) -> str:
        """`weights_hash` of the folder."""
        return weights_hash(self.folder)


_WHOLE = 2**28
"""Files up to this many bytes are read whole."""
_END, _SAMPLE, _NUM_SAMPLES = 2**22, 2**16, 64
_BESIDE_WEIGHTS = ("config.json", "generation_config.json", "tokenizer.json")


def weights_hash(folder: Path) -> str:
    """16 hex digits over a folder's safetensors files, its tokens and its configuration.

    Files above 256 MB are known by name, size, 4 MiB at both ends (the header is at the front) and 64 evenly spaced samples of
    64 KiB: cheap on network disks. It tells trained weights from others, since training moves all of a tensor; a change of a few
    bytes between the samples it does not see.
    """
    digest = hashlib.sha256()
    beside = [path for name in _BESIDE_WEIGHTS if (path := folder / name).is_file()]
    for path in [*sorted(folder.glob("*.safetensors")), *beside]:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
            else:
                for start, length in _samples(size):
                    file.seek(start)
                    digest.update(file.read(length))
    return digest.hexdigest()[:16]


def _samples(size: int) -> list[tuple[int, int]]:
    """(start, length) of what is read of a large file."""
    step = (size - 2 * _END) // (_NUM_SAMPLES + 1)
    middle = [(_END + number * step, _SAMPLE) for number in range(1, _NUM_SAMPLES + 1)]
    return [(0, _END), *middle, (size - _END, _END)]
