"""The table that the tests of the families write."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from saga_ray.mllm.families import FAMILIES, REFUSED
from saga_ray.mllm.families.table import capabilities, families_table
from tests.helpers.small_families import SMALL_FAMILIES


def test_every_family_has_a_small_model_and_a_measured_row_within_the_laws() -> None:
    assert {name.split("-")[0] for name in SMALL_FAMILIES} == set(FAMILIES)
    assert not FAMILIES.keys() & REFUSED.keys()
    written = capabilities()
    versions = {name: written[name] for name in ("transformers", "torch", "timm")}
    installed = {name: version(name).split("+")[0] for name in versions}
    assert versions == installed, "the table is of other versions: run `python -m tests.mllm.capabilities`"
    locked = (Path(__file__).parents[2] / "requirements.lock").read_text(encoding="utf-8")
    assert all(f"\n{name}=={number}" in locked for name, number in versions.items())
    told = written["families"]
    assert set(told) == set(SMALL_FAMILIES), "run `python -m tests.mllm.capabilities`"
    for row in told.values():
        assert 0 < row["gradient_single"] < 1e-5
        assert 0 < row["gradient_double"] < 1e-10
        assert row["native_logits"] < 1e-5
        assert row["attention"] < 3e-6


def test_the_table_has_a_line_per_family_and_says_who_is_refused() -> None:
    lines = families_table(capabilities()).splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(SMALL_FAMILIES)]] == sorted(SMALL_FAMILIES)
    assert all(any(name in line for line in lines if line.startswith("refused")) for name in REFUSED)
