import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saga_ray.config import RunConfig
from saga_ray.configure import to_yaml
from saga_ray.train.context import LocalContext
from tests.train import ranks
from tests.train.small import small_run_config
from tests.train.threads import TakingTurns, run_ranks


def _config(mllm: Path, method: str, metric: str) -> RunConfig:
    return small_run_config(
        mllm, method, mllm__dtype="float64", optim__steps=5, loss__metric=metric, grpo__refill=True,
        grpo__max_micro_batches=3, grpo__contributing_pairs=5, resources__num_workers=2,
        loss__potential_field__delta=1.0, loss__potential_field__alpha=1.0, evaluation__batch_size=5,
    )  # fmt: skip


def _assert_equal(folder: Path) -> None:
    """Gradients of the first step, and weights, metrics and scores after five, of one rank and of two."""
    one, two = (load_file(folder / name / "gradients.safetensors") for name in ("of1", "of2"))
    scale = max(float(value.abs().max()) for value in one.values())
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-10 * scale
    one, two = (load_file(folder / name / "run" / "encoder" / "model.safetensors") for name in ("of1", "of2"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-8
    lines = [(folder / name / "run" / "metrics.jsonl").read_text().splitlines() for name in ("of1", "of2")]
    for first, second in zip(*lines, strict=True):
        theirs = json.loads(second)
        for key, value in json.loads(first).items():
            if not key.startswith(("seconds", "trainer", "scorer")):
                assert theirs[key] == pytest.approx(value, rel=1e-8, abs=1e-9), key
    scores = [json.loads((folder / name / "run" / "result.json").read_text())["scores"] for name in ("of1", "of2")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    "method, metric",
    [
        pytest.param("saga", "potential-field", marks=pytest.mark.slow),
        ("saga+consensus", "potential-field"),
        ("potential-field+generations", "potential-field"),
        ("infonce", "infonce"),
    ],
)
def test_two_ranks_equal_one(mllm: Path, tmp_path: Path, method: str, metric: str) -> None:
    config = _config(mllm, method, metric)
    scorer = ranks.local_scorer(config)
    ranks.work(config, LocalContext(torch.device("cpu")), tmp_path / "of1", scorer)
    taking_turns = None if scorer is None else TakingTurns(scorer)
    run_ranks(2, lambda context: ranks.work(config, context, tmp_path / "of2", taking_turns))
    _assert_equal(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["potential-field", "proxy-anchor"])
def test_two_processes_of_a_gloo_group_equal_one(mllm: Path, tmp_path: Path, metric: str) -> None:
    config = _config(mllm, "saga", metric)
    ranks.work(config, LocalContext(torch.device("cpu")), tmp_path / "of1", ranks.local_scorer(config))
    torch.multiprocessing.spawn(ranks.main, (2, to_yaml(config), str(tmp_path)), nprocs=2)
    _assert_equal(tmp_path)
