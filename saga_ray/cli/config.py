"""`saga-ray config`: the resolved configuration, and every key there is."""

from __future__ import annotations

import json

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


@command.command("keys")
@click.argument("section", required=False)
def keys(section: str | None) -> None:
    """Print every key with its default and what it means, or those of a SECTION such as grpo."""
    from saga_ray.config import RunConfig
    from saga_ray.config.keys import check_choice, flat, key_meanings, model_keys

    known = list(model_keys())
    if section is not None:
        sections = dict.fromkeys(key.split(".")[0] for key in known)
        if wrong := check_choice("section", section, sections):
            raise ValueError(wrong)
        known = [key for key in known if key.split(".")[0] == section]
    defaults, meanings = flat(RunConfig.model_construct().model_dump(mode="json")), key_meanings()
    for key in known:
        default = f" = {json.dumps(defaults[key])}" if key in defaults else ""
        result(f"{key}{default}\n    {meanings.get(key, '')}".rstrip())


@command.command("schema")
def schema() -> None:
    """Print the JSON schema: every key, its meaning, bounds and default."""
    from saga_ray.config import RunConfig

    print_json(RunConfig.model_json_schema())
