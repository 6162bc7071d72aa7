"""Who may import whom, what is never written, and what importing the package costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "saga_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
BASE = {"types", "config", "configure", "storage", "recipes", "errors", "yaml_text", "machine", "model_folder"}
MAY_IMPORT = {
    "types": set(),
    "config": set(),
    "recipes": set(),
    "storage": set(),
    "errors": set(),
    "machine": set(),
    "model_folder": set(),
    "yaml_text": {"errors"},
    "configure": {"config", "recipes", "errors", "yaml_text"},
    "data": BASE,
    "encoder": BASE,
    "rl": BASE,
    "retrieval": BASE,
    "leaderboard": BASE,
    "mllm": {*BASE, "rl"},
    "mllm.demo": {*BASE, "rl", "mllm", "data"},
    "scorer": {*BASE, "rl", "encoder", "mllm"},
    "train": {*BASE, "data", "encoder", "retrieval", "leaderboard", "scorer", "mllm", "rl"},
}
MAY_IMPORT["study"] = {*MAY_IMPORT["train"], "train"}
MAY_IMPORT["vocab"] = {*MAY_IMPORT["train"], "train"}
MAY_IMPORT["on_ray"] = {*MAY_IMPORT["study"], "study"}
MAY_IMPORT["bench"] = {*MAY_IMPORT["on_ray"], "on_ray", "mllm.demo"}
MAY_IMPORT["cli"] = {*MAY_IMPORT["bench"], "bench", "vocab"}


DATA_MAY_IMPORT = {
    "splits": set(),
    "pixels": set(),
    "flags": set(),
    "demo": {"pixels", "splits"},
    "planning": {"pixels"},
    "files": {"pixels", "splits"},
    "shards": {"files", "pixels", "splits"},
    "benchmarks": {"files", "pixels", "splits"},
    "inspect": {"benchmarks", "shards", "files", "pixels", "splits"},
}
"""The rooms of `saga_ray.data`; the package itself hands out readers."""


def room_of(module: str) -> str:
    """`saga_ray.mllm.demo.make` to `mllm.demo`, `saga_ray.data.files.folder` to `data`, `saga_ray` to the empty name."""
    parts = module.split(".")[1:]
    return "mllm.demo" if parts[:2] == ["mllm", "demo"] else parts[0] if parts else ""


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import in a file, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            known = (PACKAGE.parent / Path(*node.module.split("."))).is_dir()
            found += [(node.lineno, f"{node.module}.{alias.name}" if known else node.module) for alias in node.names]
    return found


def test_every_import_of_our_own_follows_the_house() -> None:
    wrong = []
    for path in FILES:
        room = room_of(module_of(path))
        if room in ("", "__main__"):  # the package itself hands names on
            continue
        for line, module in imports_of(path):
            target = room_of(module) if module.split(".")[0] == "saga_ray" else ""
            if target in ("", "__version__") or target == room:
                continue
            if target not in MAY_IMPORT[room]:
                wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {room} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_every_room_of_the_data_imports_only_what_lies_below_it() -> None:
    wrong, rooms = [], set()
    for path in FILES:
        module = module_of(path)
        if not module.startswith("saga_ray.data."):
            continue
        room = module.split(".")[2]
        rooms.add(room)
        targets = {target.split(".")[2] for _, target in imports_of(path) if target.startswith("saga_ray.data.")}
        targets -= {room, "load_dataset"}
        wrong += [f"{module} imports {target}" for target in targets if target not in DATA_MAY_IMPORT[room]]
    assert not wrong, "\n".join(wrong)
    assert rooms == DATA_MAY_IMPORT.keys()


def test_every_folder_has_its_rule() -> None:
    rooms = {room_of(module_of(path)) for path in FILES} - {"", "__main__"}
    assert rooms <= MAY_IMPORT.keys()


def test_only_on_ray_imports_ray() -> None:
    guilty = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(module.split(".")[0] == "ray" for _, module in imports_of(path))
    }
    assert guilty
    assert all(name.startswith("on_ray/") for name in guilty)


def test_no_pickle_and_no_code_of_strangers() -> None:
    wrong = []
    for path in FILES:
        wrong += [f"{path}:{line}: {module}" for line, module in imports_of(path) if module.split(".")[0] in STRANGERS]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save", "eval", "exec"):
                wrong.append(f"{path}:{node.lineno}: {ast.unparse(node.func)}")
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                constant = isinstance(node.value, ast.Constant) and node.value.value is False
                wrong += [] if constant else [f"{path}: trust_remote_code={ast.unparse(node.value)}"]
    assert not wrong, "\n".join(wrong)


STRANGERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import saga_ray", {"torch", "ray", "transformers", "numpy"}),
        ("from saga_ray.cli.main import run; run(['--help'])", {"torch", "ray", "transformers", "numpy", "pyarrow"}),
        ("from saga_ray.cli.main import run; run(['train', '--help'])", {"torch", "ray", "transformers", "pyarrow"}),
        ("import saga_ray.config, saga_ray.configure, saga_ray.types, saga_ray.storage", {"torch", "ray"}),
        (
            f"import {', '.join(module_of(path) for path in FILES if room_of(module_of(path)) == 'data')}",
            {"torch", "ray"},
        ),
        ("import saga_ray.train.local, saga_ray.scorer.local, saga_ray.train.study_page", {"ray"}),
        (
            "import saga_ray.study.file, saga_ray.study.plan, saga_ray.study.run",
            {"torch", "ray", "optuna", "matplotlib"},
        ),
    ],
)
def test_importing_costs_only_what_is_used(code: str, absent: set[str]) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('LOADED', *{{name.split('.')[0] for name in sys.modules}})"],
        capture_output=True,
        text=True,
        check=True,
        timeout=500,  # generous: a busy machine takes long to import torch
    )
    names = set(loaded.stdout.split("LOADED")[1].split())
    assert "saga_ray" in names
    assert not names & absent
