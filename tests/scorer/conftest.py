from pathlib import Path

import pytest

from tests.helpers.small_mllm import small_mllm_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_mllm_folder(tmp_path_factory.mktemp("small_mllm"))
