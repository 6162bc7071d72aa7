"""Engines of many configurations in one process: shared where they may be, and bounded in number, as their MLLMs are."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from saga_ray.scorer.engines import MAX_ENGINES, MAX_MODELS, Engines
from tests.helpers.scoring import small_run_config

DTYPES = ("float32", "float64", "bfloat16")


def test_configurations_that_score_alike_share_an_engine_and_all_of_an_mllm_its_weights(folder: Path) -> None:
    engines = Engines()
    one = engines.get(small_run_config(folder))
    assert engines.get(small_run_config(folder, scorer__timeout_s=7.0)) is one
    other = engines.get(small_run_config(folder, grpo__group_size=3))
    assert other is not one and other.mllm.model is one.mllm.model


def test_mllms_that_were_not_asked_lately_leave_memory_with_their_engines(folder: Path) -> None:
    assert len(DTYPES) == MAX_MODELS + 1
    engines = Engines()
    configs = [small_run_config(folder, mllm__dtype=dtype) for dtype in DTYPES]
    models = [weakref.ref(engines.get(config).mllm.model) for config in configs[:2]]
    engines.get(configs[0])
    models.append(weakref.ref(engines.get(configs[2]).mllm.model))
    gc.collect()
    assert [model() is None for model in models] == [False, True, False], "the second was asked least lately"
    assert engines.get(configs[0]).mllm.model is models[0](), "and the others are not loaded again"
    assert str(engines.get(configs[1]).mllm.dtype) == f"torch.{DTYPES[1]}", "it comes back when it is asked again"


def test_a_folder_that_cannot_be_loaded_takes_nobodys_room(folder: Path) -> None:
    engines = Engines()
    models = [engines.get(small_run_config(folder, mllm__dtype=dtype)).mllm.model for dtype in DTYPES[:2]]
    with pytest.raises(ValueError, match=r"mllm\.path: /nowhere"):
        engines.get(small_run_config(Path("/nowhere")))
    for dtype, model in zip(DTYPES, models, strict=False):
        assert engines.get(small_run_config(folder, mllm__dtype=dtype)).mllm.model is model


def test_engines_are_bounded_too(folder: Path) -> None:
    engines = Engines()
    first = weakref.ref(engines.get(small_run_config(folder)))
    for number in range(MAX_ENGINES):
        assert first() is not None
        engines.get(small_run_config(folder, grpo__group_size=2 + number, grpo__temperature=0.5))
    gc.collect()
    assert first() is None


def test_a_service_gives_its_own_mllm_to_all(folder: Path) -> None:
    engines = Engines(small_run_config(folder).mllm)
    assert engines.get(small_run_config(Path("/elsewhere"))).mllm.folder == folder
