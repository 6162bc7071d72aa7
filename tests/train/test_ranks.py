import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saga_ray.configure import to_yaml
from tests.train import ranks
from tests.train.small import small_run_config


@pytest.mark.parametrize(
    "method, metric",
    [("saga", "potential-field"), ("saga", "proxy-anchor"), ("infonce", "infonce")],
)
def test_two_ranks_equal_one(mllm: Path, tmp_path: Path, method: str, metric: str) -> None:
    config = small_run_config(
        mllm, method, mllm__dtype="float64", optim__steps=5, loss__metric=metric, grpo__refill=True,
        grpo__max_micro_batches=3, grpo__contributing_pairs=5, resources__num_workers=2,
        loss__potential_field__delta=1.0, loss__potential_field__alpha=1.0, evaluation__batch_size=5,
    )  # fmt: skip
    text = to_yaml(config)
    ranks.alone(text, str(tmp_path))
    torch.multiprocessing.spawn(ranks.main, (2, text, str(tmp_path)), nprocs=2)
    one, two = (load_file(tmp_path / folder / "gradients.safetensors") for folder in ("of1", "of2"))
    scale = max(float(value.abs().max()) for value in one.values())
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-10 * scale
    one, two = (load_file(tmp_path / folder / "run" / "encoder" / "model.safetensors") for folder in ("of1", "of2"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-8
    lines = [(tmp_path / folder / "run" / "metrics.jsonl").read_text().splitlines() for folder in ("of1", "of2")]
    for first, second in zip(*map(lambda text: map(json.loads, text), lines), strict=True):
        for key, value in first.items():
            if not key.startswith(("seconds", "trainer", "scorer")):
                assert second[key] == pytest.approx(value, rel=1e-8, abs=1e-10), key
    scores = [json.loads((tmp_path / of / "run" / "result.json").read_text())["scores"] for of in ("of1", "of2")]
    assert scores[0] == scores[1]
