"""Class consensus: what the frozen MLLM agrees on about a class is taught back through it, as cross-entropy on its own words.

A verdict's reward can be earned with a private code: describe a class alike every time, rightly or not. What the MLLM writes
of many pictures of a class, relative to what it writes of all classes, says which of its words belong to the class, and
needs nothing but labels and the MLLM.

    tally        how often each value was written of each class's training pictures, per attribute
    consensus    share within the class / sqrt(mean share over classes), to the power `consensus.sharpness`, renormalised
    lesson       an answer that describes two pictures with words drawn from their classes' consensus, scored like any other

The tally grows with the answers that a run samples in any case, and replaces the taught one every `consensus.refresh_steps`
steps: nothing waits for it. Only before the first lesson are some pictures of every class read for it, and with
`consensus.generations` before each encoder that is taught; then nothing replaces what was read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from saga_ray.config import RunConfig
from saga_ray.data.pixels.images import BrokenImageError
from saga_ray.data.pixels.keyed import keyed_uniforms
from saga_ray.encoder.encoder import Encoder
from saga_ray.leaderboard.consensus_page import write_consensus_page
from saga_ray.mllm.answers import parse_answer, plain
from saga_ray.mllm.prompt import Prompt, answer_text
from saga_ray.storage import Storage
from saga_ray.train.context import RunContext
from saga_ray.train.embed import load_images
from saga_ray.types import (
    Dataset,
    ImagePair,
    MicroBatch,
    OnProgress,
    ScoreOptions,
    Scorer,
    ScoreRequest,
    ScoreResult,
    VisualTokens,
)

FIRST_READINGS = 6
"""Pictures of every class that are read before the first lesson."""
_PAIRS_PER_REQUEST = 32
FIRST_MICRO_BATCH = 2**40
"""Keys of the first readings' answers begin here, beyond any micro-batch of a run."""

Shares = dict[str, dict[str, float]]
"""Attribute to value to count or share."""
Tally = dict[int, Shares]
"""Class number to what was written of its pictures."""


def add_description(tally: Tally, label: int, description: Mapping[str, str]) -> None:
    """Count one description of a picture of class `label`, in place."""
    of_class = tally.setdefault(label, {})
    for attribute, value in description.items():
        counts = of_class.setdefault(attribute, {})
        counts[value] = counts.get(value, 0.0) + 1.0


def consensus(tally: Tally, sharpness: float) -> Tally:
    """For every class and attribute the shares of the values that are taught.

    q_c(v) = (p_c(v) / sqrt(mean_c p_c(v)))^sharpness, renormalised: a word that the MLLM writes of everything says little
    about a class.

    Args:
        tally: counts.

    Example: class 0 was called red 3 times of 4 and class 1 always: with sharpness 2, red and blue of class 0 stand
        0.75^2 / 0.875 to 0.25^2 / 0.125, so it is red with share 9 / 16.
    """
    within = {
        label: {
            attribute: {value: count / sum(counts.values()) for value, count in sorted(counts.items())}
            for attribute, counts in of_class.items()
        }
        for label, of_class in sorted(tally.items())
    }
    everywhere: Shares = {}
    heard: dict[str, int] = {}
    for of_class in within.values():
        for attribute, shares in of_class.items():
            heard[attribute] = heard.get(attribute, 0) + 1
            total = everywhere.setdefault(attribute, {})
            for value, share in shares.items():  # in the order of classes and values: sums are the same on every rank
                total[value] = total.get(value, 0.0) + share

    def sharpened(attribute: str, shares: Mapping[str, float]) -> dict[str, float]:
        raised = {
            value: (share / (everywhere[attribute][value] / heard[attribute]) ** 0.5) ** sharpness
            for value, share in shares.items()
        }
        return {value: number / sum(raised.values()) for value, number in raised.items()}

    return {
        label: {attribute: sharpened(attribute, shares) for attribute, shares in of_class.items()}
        for label, of_class in within.items()
    }


def true_shares(dataset: Dataset) -> Tally:
    """The true words of every training class, all of share 1: what the ceiling of a world is taught.

    A class has the value that most of its images have where the truth is known, and no word where it is not.
    """
    table = dataset.train
    assert table.truth_NA is not None
    shares: Tally = {}
    for label in range(len(table.class_names)):
        truth_NA = table.truth_NA[table.labels_N == label]
        shares[label] = {
            attribute: {values[np.bincount(known_N).argmax()]: 1.0}
            for attribute, values, truth_N in zip(
                dataset.attribute_names, dataset.attribute_values, truth_NA.T, strict=True
            )
            if len(known_N := truth_N[truth_N >= 0])
        }
    return shares


def another_class(label: int, num_classes: int, seed: int) -> int:
    """The class that is taught what was written of `label`: a permutation in one cycle, so none keeps its own."""
    order = np.random.default_rng([seed, 23]).permutation(num_classes)
    return int(order[(int(np.flatnonzero(order == label)[0]) + 1) % num_classes])


def other_words(shares: Tally, offered: Mapping[str, tuple[str, ...] | None], seed: int) -> Tally:
    """Every word exchanged for another of its attribute, the same one for all classes: meaning goes, structure stays.

    Two classes share a value after it if and only if they did before. The exchange is a permutation in one cycle of the
    values that the prompt offers, or of those that were written where it offers none; a word outside stays.
    """
    exchange: dict[str, dict[str, str]] = {}
    for number, (attribute, values) in enumerate(offered.items()):
        written = {value for of_class in shares.values() for value in of_class.get(attribute, {})}
        words = np.random.default_rng([seed, 24, number]).permutation(sorted(values or written)).tolist()
        exchange[attribute] = dict(zip(words, words[1:] + words[:1], strict=True))
    return {
        label: {
            attribute: {exchange[attribute].get(value, value): share for value, share in values.items()}
            for attribute, values in of_class.items()
        }
        for label, of_class in shares.items()
    }


def drawn_words(shares: Shares, attributes: Iterable[str], uniforms: Iterable[float]) -> dict[str, str]:
    """One value of each attribute, by inverse CDF over its sorted values."""
    words = {}
    for attribute, uniform in zip(attributes, uniforms, strict=True):
        values = sorted(shares[attribute])
        edges = np.cumsum([shares[attribute][value] for value in values])
        words[attribute] = values[min(int(np.searchsorted(edges, uniform * edges[-1], side="right")), len(values) - 1)]
    return words


def likeliest(shares: Shares) -> dict[str, str]:
    """The commonest value of every attribute."""
    return {attribute: max(sorted(values), key=values.__getitem__) for attribute, values in shares.items()}


def lesson_pairs(num_images: int, num_shards: int) -> list[tuple[int, int]]:
    """Every image once, each with another half of its shard, so that mostly two classes are described.

    The last image of a shard with an odd number of them is left out.

    Pairs stay within a shard, as the plan's do: how shards are shared among ranks changes nothing.
    """
    per_shard = num_images // num_shards
    half = per_shard // 2
    return [(start + i, start + half + i) for start in range(0, num_shards * per_shard, per_shard) for i in range(half)]


def _updated(old: Tally, new: Tally) -> Tally:
    """`new` laid over `old`, attribute by attribute: what was not heard lately stays as it was."""
    return old | {label: old.get(label, {}) | of_class for label, of_class in new.items()}


class Consensus:
    """What is taught now, and the tally that will replace it; the same on every rank."""

    def __init__(
        self, config: RunConfig, dataset: Dataset, prompt: Prompt, scorer: Scorer, context: RunContext
    ) -> None:
        self._config, self._dataset, self._prompt, self._scorer, self._context = (
            config,
            dataset,
            prompt,
            scorer,
            context,
        )
        self.shares: Tally = {}
        self.tally: Tally = {}
        self.heard: Tally = {}
        """What the taught shares were made from."""
        self.tokens_read = 0
        """Tokens of the readings before a lesson that no step has counted yet, over all ranks."""

    @property
    def is_truth(self) -> bool:
        """True for the ceiling, whose words never change."""
        return self._config.consensus.source == "truth"

    def begin(self, encoder: Encoder, on_images: OnProgress) -> None:
        """Read some pictures of every class through the encoder as it is now, and forget what was heard before."""
        self.shares, self.tally, self.heard = {}, {}, {}
        if self.is_truth:
            self.shares = true_shares(self._dataset)
            return
        self._read_some(encoder, on_images)
        self._refresh()
        if not any(set(self._prompt.attributes) <= set(of_class) for of_class in self.shares.values()):
            raise ValueError(
                f"loss.weights.consensus: of no training class did the MLLM describe all {len(self._prompt.attributes)} "
                f"attributes in form; look at its answers with `saga-ray mllm try`, or choose a method without consensus"
            )

    def request(self, batch: MicroBatch, tokens: VisualTokens) -> ScoreRequest | None:
        """The lesson of a micro-batch: one answer per pair of its images whose classes have a consensus."""
        attributes = list(self._prompt.attributes)
        shards_here = self._config.data.num_shards // self._context.world_size
        taught, answers = [], []
        for first, second in lesson_pairs(len(batch.labels_N), shards_here):
            labels = int(batch.labels_N[first]), int(batch.labels_N[second])
            if any(set(attributes) - set(self.shares.get(label, {})) for label in labels):
                continue
            rows = batch.rows_N[[first, second]]
            uniforms_2A = keyed_uniforms((21, self._config.seed, batch.index), rows, len(attributes))
            words = [
                drawn_words(self.shares[label], attributes, uniforms)
                for label, uniforms in zip(labels, uniforms_2A, strict=True)
            ]
            same = labels[0] == labels[1]
            apart = [name for name in attributes if words[0][name] != words[1][name]]
            taught.append(ImagePair(first, second, same, len(taught)))
            answers.append((answer_text(self._prompt, *words, apart, same),))
        if not taught:
            return None
        options = ScoreOptions(attention=False, lesson=True)
        return ScoreRequest(self._config.seed, batch.index, tuple(taught), tokens, options, answers=tuple(answers))

    def hear(self, batch: MicroBatch, result: ScoreResult) -> None:
        """Tally the answers about a micro-batch, over all ranks, if they will be taught."""
        if self._config.refreshes_the_consensus:
            labels = [(int(batch.labels_N[p.first]), int(batch.labels_N[p.second])) for p in batch.pairs]
            self._add(self._described(labels, result))

    def end_step(self, step: int) -> None:
        """Now and then, let what was heard replace what is taught; attributes of which nothing was heard keep theirs."""
        if self._config.refreshes_the_consensus and step % self._config.consensus.refresh_steps == 0:
            self._refresh()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: getattr(self, name) for name in ("shares", "tally", "heard")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint, whose keys are strings."""
        for name in ("shares", "tally", "heard"):
            setattr(self, name, {int(label): of_class for label, of_class in state[name].items()})

    def write_page(self, folder: Storage) -> None:
        """`consensus.html`: per class what the MLLM agrees on, where it wavers, and what was taught at the end."""
        table, names = self._dataset.train, self._dataset.train.class_names
        truth = true_shares(self._dataset) if table.truth_NA is not None else {}
        starts = {int(label): row for row, label in reversed(list(enumerate(table.labels_N)))}
        pictures = {names[label]: self._first_pictures(starts[label], label) for label in sorted(self.shares)}
        write_consensus_page(
            folder,
            "What the MLLM agrees on",
            {names[label]: of_class for label, of_class in (self.heard or self.shares).items()},
            taught={names[label]: likeliest(of_class) for label, of_class in self.shares.items()},
            pictures=pictures,
            truth={names[label]: likeliest(of_class) for label, of_class in truth.items()},
            details=f"{len(self.shares)} training classes of {self._dataset.name}",
        )

    def _first_pictures(self, start: int, label: int, num: int = 2) -> list[np.ndarray]:
        """Some pictures of a class that can be read."""
        table, found = self._dataset.train, []
        for row in range(start, len(table)):
            if table.labels_N[row] != label or len(found) == num:
                break
            with contextlib.suppress(BrokenImageError):
                found.append(table.source.load([row], self._config.data.image_size)[0])
        return found

    def _refresh(self) -> None:
        heard = consensus(self.tally, self._config.consensus.sharpness)
        if self._config.consensus.source == "another-class":
            number = len(self._dataset.train.class_names)
            heard = {another_class(label, number, self._config.seed): of_class for label, of_class in heard.items()}
        if self._config.consensus.source == "other-words":
            heard = other_words(heard, self._prompt.attributes, self._config.seed)
        self.shares = _updated(self.shares, heard)
        self.heard = _updated(self.heard, self.tally)
        self.tally = {}

    def _described(
        self, labels: Sequence[tuple[int | None, int | None]], result: ScoreResult
    ) -> list[tuple[int, dict[str, str]]]:
        """Class and description of every image that has a class and was described."""
        found = []
        for pair, texts in zip(labels, result.texts_PG, strict=True):
            for text in texts:
                said = parse_answer(text, self._prompt.verdict_key).descriptions(text)
                told = zip(pair, said, strict=True)
                found += [(label, description) for label, description in told if description and label is not None]
        return found

    def _add(self, mine: list[tuple[int, dict[str, str]]]) -> None:
        known = {plain(name): name for name in self._prompt.attributes}
        for rank in self._context.gather(mine):
            for label, description in rank:
                words = {plain(name): value.strip() for name, value in description.items()}
                # A value of spaces is no word, and no lesson could be made of it.
                said = {known[name]: value for name, value in words.items() if name in known and value}
                add_description(self.tally, label, said)

    @torch.no_grad()
    def _read_some(self, encoder: Encoder, on_images: OnProgress) -> None:
        """Pairs of pictures of neighbouring classes in a fixed order; requests are shared among ranks."""
        table, size = self._dataset.train, self._config.data.image_size
        order = np.random.default_rng([self._config.seed, 22]).permutation(len(table))
        order = order[np.argsort(table.labels_N[order], kind="stable")]
        starts = np.searchsorted(table.labels_N[order], np.arange(len(table.class_names)))
        counts = np.bincount(table.labels_N, minlength=len(table.class_names))
        rows = [
            order[start + turn]
            for turn in range(FIRST_READINGS)
            for start, n in zip(starts, counts, strict=True)
            if turn < n
        ]
        pairs = [(rows[i], rows[i + 1]) for i in range(0, len(rows) - 1, 2)]
        found: list[tuple[int, dict[str, str]]] = []
        num_tokens = 0
        for number, begin in enumerate(range(0, len(pairs), _PAIRS_PER_REQUEST)):
            if number % self._context.world_size != self._context.rank:
                continue
            part = pairs[begin : begin + _PAIRS_PER_REQUEST]
            here = [int(row) for pair in part for row in pair]
            images_NHWC, readable_N = load_images(table, here, size, skip_broken=True)
            tokens = encoder.encode_tokens(torch.from_numpy(images_NHWC).to(self._context.device))
            asked = tuple(ImagePair(2 * i, 2 * i + 1, False, i) for i in range(len(part)))
            options = ScoreOptions(gradient=False, attention=False)
            key = FIRST_MICRO_BATCH + number
            result = self._scorer.score(ScoreRequest(self._config.seed, key, asked, tokens, options))
            on_images(2 * (begin + len(part)), 2 * len(pairs))
            num_tokens += int(result.num_tokens_PG.sum())
            # Of an image that cannot be read the MLLM sees black: what it writes says nothing of the class.
            shown = [
                int(table.labels_N[row]) if can_be_read else None
                for row, can_be_read in zip(here, readable_N, strict=True)
            ]
            found += self._described(list(zip(shown[::2], shown[1::2], strict=True)), result)
        self._add(found)
        self.tokens_read += sum(self._context.gather(num_tokens))
