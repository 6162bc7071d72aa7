"""`saga-ray config`: the resolved configuration, and every key there is."""

from __future__ import annotations

import click

from saga_ray.cli.options import DATASET_HELP, config_options, configuration, split_words
from saga_ray.cli.terminal import print_json, result


@click.group("config")
def command() -> None:
    """Show a resolved configuration, or every key."""


@command.command("show")
@click.argument("words", nargs=-1, metavar="DATASET")
@config_options
def show(
    words: tuple[str, ...],
    method: str | None,
    recipe: str | None,
    data_root: str | None,
    config_file: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Print every value that a run with these options would have, as YAML."""
    dataset, more = split_words(words, f"data set ({DATASET_HELP})")
    config = configuration(
        dataset,
        method=method,
        recipe=recipe,
        config_file=config_file,
        assignments=[*assignments, *more],
        shortcuts={"data.root": data_root},
    )
    from saga_ray.configure import to_yaml

    result(to_yaml(config).rstrip())


@command.command("schema")
def schema() -> None:
    """Print the JSON schema: every key, its meaning, bounds and default."""
    from saga_ray.config import RunConfig

    print_json(RunConfig.model_json_schema())
