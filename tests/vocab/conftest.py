from pathlib import Path

import pytest

from saga_ray.data import load_dataset
from saga_ray.types import Dataset
from tests.helpers.small_mllm import small_mllm_folder
from tests.train.small import small_run_config


@pytest.fixture(scope="session")
def mllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_mllm_folder(tmp_path_factory.mktemp("mllm") / "small")


@pytest.fixture(scope="session")
def reading_mllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One without a prompt of its own: it is asked what the run says."""
    return small_mllm_folder(tmp_path_factory.mktemp("mllm") / "reading", own_prompt=False)


@pytest.fixture(scope="session")
def dataset(mllm: Path) -> Dataset:
    return load_dataset(small_run_config(mllm))
