"""`saga-ray vocab`: what an MLLM is asked to describe, whether it is worth its tokens, and whether it is named rightly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saga_ray.cli.options import DATA_ROOT, RECIPE, SET, check_target, configuration, split_words
from saga_ray.cli.terminal import print_json, progress, result, say
from saga_ray.cli.vocab_tables import print_score, print_truth, print_vocabulary

if TYPE_CHECKING:
    from saga_ray.config import RunConfig
    from saga_ray.mllm.vocabulary import Vocabulary
    from saga_ray.vocab.score import VocabularyScore

SPLIT = click.option(
    "--split",
    type=click.Choice(("validation", "test")),
    default="validation",
    show_default=True,
    help="Whose classes the pairs are of.",
)
PAIRS = click.option("--pairs", type=click.IntRange(20), default=400, show_default=True, help="Pairs asked about.")
ANSWERS = click.option(
    "--answers", type=click.IntRange(1), default=2, show_default=True, help="Answers sampled per pair."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead of a table.")


@click.group("vocab")
def command() -> None:
    """Show, check and judge the attributes that the MLLM describes."""


@command.command("show")
@click.argument("name", metavar="NAME|FILE")
@click.option("--mllm", "mllm_path", metavar="DIR", help="Whose tokens are counted. [default: the bundled demo MLLM's]")
def show(name: str, mllm_path: str | None) -> None:
    """Print the attributes and values of a vocabulary, and what a description costs in tokens.

    NAME is that of a vocabulary in the package (aircraft, birds, cars, generic) or of a data set; demo is what the bundled
    MLLM describes.
    """
    from saga_ray.mllm.loading import check_folder
    from saga_ray.model_folder import model_folder

    vocabulary, source = _named(name)
    folder = model_folder(mllm_path)
    check_folder(folder)
    from transformers import AutoTokenizer

    from saga_ray.vocab.cost import typical_cost

    cost = typical_cost(vocabulary, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    print_vocabulary(vocabulary, source, cost, str(folder))


def _named(name: str) -> tuple[Vocabulary, str]:
    """A vocabulary by its own name, by a data set's, or by its file's."""
    from importlib.resources import files

    from saga_ray.mllm.prompt import OWN_PROMPT, VOCABULARIES
    from saga_ray.mllm.vocabulary import load_vocabulary, parse_vocabulary

    if name != "demo":
        return load_vocabulary(VOCABULARIES.get(name, name))
    own = files("saga_ray").joinpath("mllm", "demo", "weights", OWN_PROMPT)
    return parse_vocabulary(own.read_text(encoding="utf-8"), OWN_PROMPT), "the bundled MLLM's own prompt"


@command.command("check")
@click.argument("file", metavar="FILE")
def check(file: str) -> None:
    """Say whether FILE is a vocabulary that can be asked and whose answers can be read; exit code 2 if not."""
    from saga_ray.configure import ConfigError

    try:
        vocabulary, _ = _named(file)
    except ConfigError as error:
        count = len(str(error).splitlines())
        raise ConfigError(f"{error}\n{file}: not valid, {count} mistake{'s' if count > 1 else ''}") from None
    num_values = sum(len(values or ()) for values in vocabulary.attributes.values())
    result(f"{file}: valid, {len(vocabulary.attributes)} attributes with {num_values} values")


@command.command("score")
@click.argument("words", nargs=-1, metavar="DATASET|FILE")
@click.option("--dataset", metavar="NAME", help="Whose pictures are shown, if a vocabulary's FILE is named.")
@DATA_ROOT
@RECIPE
@click.option("--run", metavar="RUN", help="Look through the trained encoder of this run, with its configuration.")
@SPLIT
@PAIRS
@ANSWERS
@click.option("--least-bits", type=click.FloatRange(0), default=None, help="Less is for nothing. [default: 0.02]")
@JSON
@click.option("--plot", metavar="FILE.png", help="Draw the bits.")
@click.option(
    "--write", metavar="FILE.yaml", help="Write the vocabulary without what the answers give no reason to keep."
)
@SET
def score(
    words: tuple[str, ...],
    dataset: str | None,
    data_root: str | None,
    recipe: str | None,
    run: str | None,
    split: str,
    pairs: int,
    answers: int,
    least_bits: float | None,
    as_json: bool,
    plot: str | None,
    write: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Say which attributes decide verdicts, which are not answered, and which cost tokens for nothing.

    The MLLM answers about pairs of one class and of neighbouring classes. An attribute decides if the difference of its two
    written values tells something about the truth, in bits of mutual information.

    Found is: decides; open (more --pairs would tell); for nothing (tells less than --least-bits, with 95 % certainty);
    seldom answered (under half of the descriptions name it, and it decides nothing); never answered.

    saga-ray vocab score demo

    saga-ray vocab score mine.yaml --dataset cub --data-root /data/CUB_200_2011 --write less.yaml
    """
    config = _scored_config(words, dataset, data_root, recipe, run, assignments)
    check_target(plot, "--plot")
    check_target(write, "--write")
    from saga_ray.scorer.prompt import run_prompt
    from saga_ray.vocab.asking import Sample
    from saga_ray.vocab.measure import measure_score
    from saga_ray.vocab.score import LEAST_BITS

    least_bits = LEAST_BITS if least_bits is None else least_bits
    with progress() as bar:
        found = measure_score(config, Sample(split, pairs, answers), run=run, least_bits=least_bits, progress=bar)
    if as_json:
        print_json(found.as_json() | {"dataset": config.dataset, "split": split, "run": run, "least_bits": least_bits})
    else:
        print_score(found, "its initial encoder" if run is None else f"the encoder of {run}", least_bits)
    if plot is not None:
        from saga_ray.leaderboard.vocabulary_plots import information_bars

        _write(plot, _png(information_bars([vars(each) for each in found.attributes])))
    if write is not None:
        _write_reduced(write, found, run_prompt(config))


def _scored_config(
    words: tuple[str, ...],
    dataset: str | None,
    data_root: str | None,
    recipe: str | None,
    run: str | None,
    assignments: tuple[str, ...],
) -> RunConfig:
    from saga_ray.config import DATASETS

    if run is not None:
        return _config_of_run(run, data_root, [*words, *assignments, *filter(None, (dataset, recipe))])
    name, more = split_words(words, "data set or vocabulary file")
    vocabulary = None if name in DATASETS else name
    if vocabulary is not None and dataset is None:
        dataset = _dataset_of(name)
    if vocabulary is None and dataset not in (None, name):
        raise click.UsageError(f"Expected one data set, but got {name} and --dataset {dataset}.")
    shortcuts = {"data.root": data_root, "prompt.vocabulary": vocabulary}
    return configuration(dataset or name, recipe=recipe, assignments=[*assignments, *more], shortcuts=shortcuts)


def _dataset_of(name: str) -> str:
    from saga_ray.config import DATASETS
    from saga_ray.config.keys import check_choice
    from saga_ray.configure import ConfigError

    if Path(name).suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{check_choice('data set', name, DATASETS)}; a vocabulary's file ends in .yaml")
    raise ConfigError(f"{name}: say whose pictures are shown with --dataset NAME ({', '.join(DATASETS)})")


def _config_of_run(run: str, data_root: str | None, words: Sequence[str]) -> RunConfig:
    from saga_ray.configure import ConfigError
    from saga_ray.vocab.asking import finished_run

    config = finished_run(run, data_root)
    if further := [word for word in words if word != config.dataset]:
        raise ConfigError(
            f"--run {run}: brings its own data set ({config.dataset}), configuration and vocabulary; "
            f"leave out {', '.join(further)}, or --run"
        )
    return config


def _write_reduced(path: str, found: VocabularyScore, prompt: Any) -> None:
    from saga_ray.configure import ConfigError
    from saga_ray.mllm.vocabulary import Vocabulary

    asked = Vocabulary(
        role=prompt.role, item=prompt.item, verdict_key=prompt.verdict_key, attributes=dict(prompt.attributes)
    )
    names = {each.name for each in found.dropped}
    if len(names) == len(asked.attributes):
        raise ConfigError(
            f"--write {path}: no attribute would be left; nothing was written. Ask about more --pairs, or lower --least-bits"
        )
    _write(path, asked.without(names).to_yaml().encode())


@command.command("truth")
@click.argument("run", metavar="RUN")
@DATA_ROOT
@SPLIT
@PAIRS
@ANSWERS
@JSON
@click.option("--plot", metavar="FILE.png", help="Where the plot goes. [default: truth.png in RUN]")
def truth(
    run: str, data_root: str | None, split: str, pairs: int, answers: int, as_json: bool, plot: str | None
) -> None:
    """Say how many true attributes the MLLM names rightly through the encoder of RUN, before and after training.

    Needs a data set whose attributes are labelled (demo, or cub with its attributes).
    """
    check_target(plot, "--plot")
    from saga_ray.leaderboard.vocabulary_plots import truth_lines
    from saga_ray.vocab.asking import Sample
    from saga_ray.vocab.measure import measure_truth

    with progress() as bar:
        found = measure_truth(run, Sample(split, pairs, answers), data_root=data_root, progress=bar)
    if as_json:
        print_json(found.as_json() | {"run": run, "split": split, "pairs": pairs, "answers": answers})
    else:
        print_truth(found, split, pairs)
    picture = _png(truth_lines([vars(row) for row in found.rows]))
    if plot is not None:
        _write(plot, picture)
        return
    from saga_ray.storage import Storage

    Storage.open(run).write("truth.png", picture)
    say(f"Wrote {run.rstrip('/')}/truth.png")


def _write(path: str, content: bytes) -> None:
    from saga_ray.storage import Storage

    place = Path(path).absolute()
    Storage.open(place.parent).write(place.name, content)
    say(f"Wrote {path}")


def _png(figure: Any) -> bytes:
    from saga_ray.leaderboard.figures import to_png

    return to_png(figure)
