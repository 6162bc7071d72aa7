"""Configurations: recipes, methods, files and overrides; every mistake is named, all at once."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saga_ray.config import DATASETS, RunConfig
from saga_ray.config.keys import flat, model_keys, nested
from saga_ray.configure import (
    METHODS,
    ConfigError,
    changed_keys,
    check_run_name,
    default_run_name,
    from_yaml,
    label,
    parse_assignments,
    resolve,
    to_yaml,
    with_override,
)
from saga_ray.yaml_text import load_yaml, parse_yaml

STABLE_KEYS = (
    "recipe", "seed", "method", "encoder.tower",
    "encoder.pooler", "encoder.dim", "loss.metric", "loss.weights.metric",
    "loss.weights.grpo", "loss.weights.alignment", "loss.weights.reference_kl", "loss.weights.anchor",
    "grpo.group_size", "grpo.contributing_pairs", "grpo.max_micro_batches", "grpo.temperature",
    "grpo.top_p", "grpo.max_new_tokens", "optim.lr_tower", "optim.lr_pooler",
    "optim.lr_proxies", "data.world_seed", "data.confound", "data.shift",
    "data.verify_counts", "checkpoint.every_steps", "resources.num_workers", "resources.cpus_per_worker",
    "resources.gpus_per_worker", "resources.num_scorers", "resources.gpus_per_scorer", "mllm.path",
    "prompt.variant", "scorer.deterministic",
)  # fmt: skip


def sentences(*args: str, **options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(*args, **options)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


def test_keys_that_scripts_use_exist() -> None:
    assert set(STABLE_KEYS) <= set(model_keys())


def test_every_key_says_what_it_means_or_has_a_name_that_does() -> None:
    schema = RunConfig.model_json_schema()
    missing = [
        f"{model}.{key}"
        for model, definition in schema["$defs"].items()
        for key, told in definition["properties"].items()
        if "description" not in told
        and "$ref" not in told
        and not key.endswith(("_per_worker", "_per_scorer", "_per_data_task"))
    ]
    assert not missing


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_valid_on_every_data_set(dataset: str, method: str) -> None:
    config = resolve(dataset, method=method, overrides={"data.root": None if dataset == "demo" else "somewhere"})
    assert config.method == method
    assert config.recipe == ("demo" if dataset in ("demo", "folder") else "paper")
    assert label(config) == method
    assert check_run_name(default_run_name(config))


def test_the_methods_differ_in_what_their_names_say() -> None:
    configs = {method: resolve("demo", method=method) for method in METHODS}
    assert [m for m, c in configs.items() if c.asks_the_mllm] == [
        "potential-field+reference-kl", "potential-field+alignment", "potential-field+alignment+reference-kl",
        "potential-field+consensus", "potential-field+generations", "potential-field+grpo", "potential-field+grpo-generic",
        "saga", "saga+expected", "saga+consensus",
    ]  # fmt: skip
    assert configs["pretrained"].optim.steps == 0
    assert configs["proxy-anchor"].loss.metric == "proxy-anchor"
    assert configs["potential-field"].encoder.pooler == "mean"
    assert configs["potential-field+pooler"].encoder.pooler == "attention"
    assert configs["potential-field+grpo-generic"].prompt.variant == "generic"
    assert len({config.model_dump_json(exclude={"method"}) for config in configs.values()}) == len(METHODS)


def test_the_paper_recipe_holds_the_papers_values() -> None:
    config = resolve("cub", overrides={"data.root": "somewhere"})
    assert (config.data.image_size, config.data.batch_size, config.grpo.group_size) == (224, 64, 8)
    assert (config.grpo.temperature, config.grpo.top_p, config.grpo.max_new_tokens) == (0.7, 0.95, 1024)
    assert (config.optim.lr_tower, config.optim.epochs, config.encoder.dim) == (2e-5, 3, 4096)
    assert config.alignment.layer_depth == pytest.approx(26 / 36)
    assert config.grpo.refill


@pytest.mark.parametrize("method", ["potential-field+reference-kl", "potential-field+alignment+reference-kl"])
def test_a_reference_kl_samples_the_full_support(method: str) -> None:
    assert resolve("cub", method=method, overrides={"data.root": "somewhere"}).grpo.top_p == 1


def test_later_values_win_and_the_label_names_them() -> None:
    config = resolve(
        "demo",
        file_values={"grpo": {"group_size": 4}, "optim": {"lr_tower": 1e-5}},
        overrides={"grpo.group_size": 6},
    )
    assert (config.grpo.group_size, config.optim.lr_tower) == (6, 1e-5)
    assert changed_keys(config) == {"grpo.group_size": 6, "optim.lr_tower": 1e-5}
    assert label(config) == "saga (grpo.group_size=6, optim.lr_tower=1e-05)"


def test_what_changes_no_number_is_not_in_the_label() -> None:
    config = resolve("demo", overrides={"seed": 3, "checkpoint.every_steps": 7, "resources.num_workers": 2})
    assert label(config) == "saga"
    assert default_run_name(config) == "saga-seed3"


def test_all_mistakes_are_told_at_once_with_the_nearest_key() -> None:
    found = sentences(
        "demoo",
        method="sga",
        recipe="papper",
        overrides={
            "grpo.groupsize": 4,
            "group_size": 4,
            "optim.lr_tower": "fast",
            "data.classes_per_batch": 15,
            "resources.num_workers": 3,
            "loss.weights.anchor": -1,
            "loss.weights.reference_kl": -1,
            "grpo": 3,
        },
    )
    for start in (
        "data set 'demoo' is unknown; did you mean 'demo'?",
        "recipe 'papper' is unknown; did you mean 'paper'?",
        "method 'sga' is unknown; did you mean 'saga'?",
        "--set: unknown key 'grpo.groupsize'; did you mean 'grpo.group_size'?",
        "--set: unknown key 'group_size'; did you mean 'grpo.group_size'?",
        "optim.lr_tower: 'fast' is not accepted",
        "data.num_shards: 4 must divide data.classes_per_batch (15)",
        "resources.num_workers: 3 does not divide data.num_shards (4)",
        "loss.weights.anchor: -1 is not accepted",
        "loss.weights.reference_kl: -1 is not accepted",
    ):
        assert any(line.startswith(start) for line in found), start
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        ({"grpo.group_size": 1}, "grpo.group_size: 1 is not accepted"),
        ({"grpo.temperature": 0}, "grpo.temperature: 0 is not accepted"),
        ({"data.confound": 1.5}, "data.confound: 1.5 is not accepted"),
        ({"encoder.pooler": "men"}, "encoder.pooler: 'men' is not accepted"),
        ({"encoder.pooler": "mean"}, "loss.weights.alignment: 1.0 needs encoder.pooler=attention"),
        ({"data.num_classes": [1, "x", 3]}, "data.num_classes.1: 'x' is not accepted"),
        (
            {"loss.weights.consensus": 1, "prompt.variant": "generic"},
            "loss.weights.consensus: 1.0 needs prompt.variant=structured",
        ),
        (
            {"loss.weights.reference_kl": 1, "grpo.top_p": 0.9},
            "grpo.top_p: 0.9 cuts off answers that loss.weights.reference_kl compares; set grpo.top_p=1",
        ),
        ({"data.pairs_per_batch": 6}, "data.pairs_per_batch: 6 is not a multiple of data.num_shards (4)"),
        ({"optim.lr_tower": float("nan")}, "optim.lr_tower: nan is not accepted"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(overrides: dict[str, object], start: str) -> None:
    [line] = sentences("demo", overrides=overrides)
    assert line.startswith(start)


def test_a_missing_folder_of_images_is_told_with_the_other_mistakes() -> None:
    found = sentences("cub", overrides={"grpo.group_size": 1})
    assert found[0].startswith("grpo.group_size")
    assert found[1] == "data.root: missing; say where the images of 'cub' are with --data-root DIR"


def test_with_override_checks_again() -> None:
    config = resolve("demo")
    assert with_override(config, "grpo.group_size", 4).grpo.group_size == 4
    with pytest.raises(ConfigError, match=r"did you mean 'grpo.group_size'"):
        with_override(config, "grpo.groupsize", 4)
    with pytest.raises(ConfigError, match=r"grpo.group_size: 0"):
        with_override(config, "grpo.group_size", 0)


def test_yaml_reads_numbers_as_people_write_them() -> None:
    assert parse_yaml("a: 1e-4\nb: 1.0e-4\nc: -2E3\nd: 1.5\ne: '1e-4'", "f") == {
        "a": 1e-4, "b": 1e-4, "c": -2000.0, "d": 1.5, "e": "1e-4",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\na: 2", "f: line 2: key 'a' stands twice; keep one"),
        ("a: &x 1\nb: *x", "f: line 2: YAML aliases are not accepted; write the value out"),
        ("a: [1, 2", "f, line 1: not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "f, line 1: not valid YAML"),
    ],
)
def test_yaml_that_would_surprise_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f")
    assert str(caught.value).startswith(sentence)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.yaml: cannot be read"):
        load_yaml(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match=r"holds list where a mapping"):
        load_yaml(tmp_path / "list.yaml")


def test_assignments_are_yaml_and_all_wrong_ones_are_named() -> None:
    assert parse_assignments(["a.b=1e-3", "c=[1, 2]", "d=null", "e=x=y"]) == {
        "a.b": 1e-3, "c": [1, 2], "d": None, "e": "x=y",
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        parse_assignments(["a", "=3", "b=[1"])
    assert len(str(caught.value).splitlines()) == 3


KEYS = st.text("abc", min_size=1, max_size=3)
TREES = st.recursive(
    st.integers() | st.booleans() | st.text(max_size=3),
    lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # of a machine that does other things too
@given(st.dictionaries(KEYS, TREES, max_size=3))
def test_flat_and_nested_are_inverse(tree: dict[str, object]) -> None:
    assert nested(flat(tree)) == tree


@pytest.mark.parametrize("method", METHODS)
def test_a_written_config_is_read_back_equal(method: str) -> None:
    config = resolve("demo", method=method, overrides={"optim.lr_tower": 1e-7, "data.confound": 1 / 3})
    assert from_yaml(to_yaml(config), "config.yaml") == config


def test_a_damaged_written_config_names_its_file() -> None:
    with pytest.raises(ConfigError, match=r"run/config.yaml: seed: -1"):
        from_yaml(to_yaml(resolve("demo")).replace("seed: 0", "seed: -1", 1), "run/config.yaml")


@pytest.mark.parametrize("name", ["a", "saga-seed0", "A.b_c+d=e", "x" * 120])
def test_run_names_that_every_disk_takes_are_accepted(name: str) -> None:
    assert check_run_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b", "..", ".hidden", "a\\b", "a\0b", "a\nb", "con", "NUL.txt", "x" * 121, "<script>", "a..b", "-x"],
)
def test_other_run_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a run name"):
        check_run_name(name)


@given(st.text(max_size=200))
def test_no_run_name_leaves_its_folder(name: str) -> None:
    try:
        check_run_name(name)
    except ConfigError:
        return
    assert "/" not in name and "\\" not in name and ".." not in name and "\n" not in name


def test_a_long_label_still_gives_a_run_name() -> None:
    many = {key: value for key, value in flat(resolve("demo").optim.model_dump()).items() if isinstance(value, float)}
    config = resolve("demo", overrides={f"optim.{key}": value / 2 for key, value in many.items()})
    other = resolve("demo", overrides={f"optim.{key}": value / 4 for key, value in many.items()})
    assert check_run_name(default_run_name(config)) != default_run_name(other)


def test_recipes_are_in_the_package() -> None:
    assert {f"{name}.yaml" for name in ("paper", "demo")} <= {f.name for f in files("saga_ray.recipes").iterdir()}


def test_what_was_typed_stands_above_a_config_file() -> None:
    of_a_sweep = {"dataset": "demo", "method": "saga", "recipe": "demo", "grpo": {"group_size": 4}}
    config = resolve("cub", method="potential-field+grpo", file_values=of_a_sweep, overrides={"data.root": "somewhere"})
    assert (config.dataset, config.method, config.recipe) == ("cub", "potential-field+grpo", "demo")
    assert config.grpo.group_size == 4
    assert resolve("demo", file_values={"method": "proxy-anchor"}).method == "proxy-anchor"


def test_two_typed_methods_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="--set method=saga: 'infonce' was typed as well"):
        resolve("demo", method="infonce", overrides={"method": "saga"})


def test_the_paper_recipe_pins_its_model_to_a_commit() -> None:
    config = resolve("cub", overrides={"data.root": "somewhere"})
    assert config.mllm.revision is not None
    assert len(config.mllm.revision) == 40
    with pytest.raises(ConfigError, match=r"mllm\.revision: 'main'"):
        resolve("cub", overrides={"data.root": "somewhere", "mllm.revision": "main"})


def test_steps_do_not_split_the_row_of_an_encoder_that_does_not_learn() -> None:
    assert label(resolve("demo", method="pretrained", overrides={"optim.steps": 20})) == "pretrained"
