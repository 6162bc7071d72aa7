"""What `saga-ray vocab` prints: columns that line up, and sentences below."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from saga_ray.cli.terminal import result, say

if TYPE_CHECKING:
    from saga_ray.mllm.vocabulary import Vocabulary
    from saga_ray.vocab.cost import Cost
    from saga_ray.vocab.score import VocabularyScore
    from saga_ray.vocab.truth import Truth


def print_vocabulary(vocabulary: Vocabulary, source: str, cost: Cost | None, folder: str) -> None:
    """Attributes, values and tokens; without `cost` the tokenizer in `folder` cannot write them."""
    said = {
        attribute: ", ".join(values) if values else "free text" for attribute, values in vocabulary.attributes.items()
    }
    result(
        f"{source}: {len(said)} attributes of a {vocabulary.item}, asked as {vocabulary.role}, verdict {vocabulary.verdict_key}"
    )
    if cost is None:
        _print_table(["attribute", "values"], [[attribute, words] for attribute, words in said.items()])
        say(
            f"The tokenizer in {folder} has no tokens for these words; name another MLLM with --mllm DIR to count them."
        )
        return
    rows = [[attribute, _span(*cost.attributes[attribute]), words] for attribute, words in said.items()]
    _print_table(["attribute", "tokens", "values"], rows)
    result(
        f"A description costs {cost.description:.0f} tokens, an answer with two of them {cost.answer:.0f}, "
        f"what it says of differences left out (tokenizer in {folder})"
    )


def _span(mean: float, least: int, most: int) -> str:
    return f"{mean:.1f}" if least == most else f"{mean:.1f} ({least}-{most})"


def print_score(found: VocabularyScore, looking_through: str, least_bits: float) -> None:
    """One row per attribute, the most telling first, and what could be dropped."""
    titles = [
        "attribute",
        "bits",
        "95 % interval",
        "p",
        "verdict's bits",
        "answered",
        "listed",
        "differ same",
        "differ other",
        "tokens",
        "found",
    ]
    rows = [
        [
            each.name, f"{each.bits:.3f}", f"{each.low:.3f} to {each.high:.3f}", f"{each.p:.3f}", f"{each.verdict_bits:.3f}",
            _percent(each.answered), _percent(each.listed), _percent(each.differs_same), _percent(each.differs_different),
            f"{each.tokens:.1f}", each.finding,
        ]
        for each in sorted(found.attributes, key=lambda each: -each.bits)
    ]  # fmt: skip
    _print_table(titles, rows)
    result(
        f"{found.num_pairs} pairs, {found.num_answers} answers each, {_percent(found.well_formed)} % well formed, seen through "
        f"{looking_through}. Less than {least_bits:g} bits, with 95 % certainty, is for nothing."
    )
    if not found.dropped:
        result(f"No reason to drop any attribute; an answer costs {found.tokens:.1f} tokens.")
        return
    result(
        f"Without {', '.join(each.name for each in found.dropped)} an answer costs {found.tokens_without:.1f} tokens, "
        f"not {found.tokens:.1f}."
    )
    if found.told is not None and found.told_without is not None:
        result(
            f"All written differences together tell {_percent(found.told)} % of pairs rightly, the remaining ones "
            f"{_percent(found.told_without)} % (logistic regression, 5 folds)."
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def print_truth(found: Truth, split: str, num_pairs: int) -> None:
    """Shares before and after, in percent, and what could not be compared."""
    titles = ["attribute", "before", "after", "difference", "95 % interval", "classes"]
    _print_table(
        titles,
        [
            [
                row.name, _percent(row.before), _percent(row.after), f"{100 * row.difference:+.1f}",
                f"{100 * row.low:+.1f} to {100 * row.high:+.1f}", str(row.num_classes),
            ]
            for row in found.rows
        ],
    )  # fmt: skip
    result(
        f"Percent of descriptions with the true value, over {num_pairs} pairs of {split} classes; intervals over classes."
    )
    before, after = map(_percent, found.well_formed)
    result(f"Answers in form: {before} % before, {after} % after; the others name nothing.")
    for name, reason in found.left_out.items():
        result(f"Left out: {name} ({reason})")


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns that line up; on a terminal long values wrap."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else 10_000, legacy_windows=False, markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD if is_terminal else box.ASCII2, show_edge=False, pad_edge=False)
    for number, title in enumerate(titles):
        is_word = number == 0 or title in ("values", "found")
        table.add_column(Text(title), justify="left" if is_word else "right", no_wrap=not is_word, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
