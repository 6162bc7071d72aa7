"""The bench of the scorer: equal work for everybody, ratios as they are said, and the whole of it on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saga_ray.bench.flops import gradient_flops
from saga_ray.bench.random_mllm import MLLMShape
from saga_ray.bench.scorer import FULL, QUICK, _differing, _ratios
from saga_ray.bench.scorer_work import Work, completions_of, make_work, naive, naive_generate, ours
from saga_ray.bench.trl_peer import NoPeer, trl_peer
from saga_ray.bench.work_shapes import SHAPES, WorkShape


@pytest.fixture(scope="module")
def work() -> Work:
    return make_work(QUICK.mllm, QUICK.works["compact"])


def test_everybody_writes_answers_of_the_asked_length_and_gradients_agree(work: Work) -> None:
    result, seconds = ours(work, 1)
    shape = work.shape
    assert result.token_ids_PGR.shape == (shape.num_pairs, shape.group_size, shape.answer)
    assert (result.num_tokens_PG == shape.answer).all() and seconds["step"] >= seconds["sample"] + seconds[
        "gradient"
    ] - 1e-9
    ids = naive_generate(work)
    assert ids.shape == (shape.num_pairs * shape.group_size, shape.answer)
    banned = torch.isinf(work.mllm.bias_V)
    assert not banned[ids].any() and not banned[result.token_ids_PGR].any() and banned[list(work.mllm.end_ids)].all()
    scored, spent = naive(work, completions_of(result))
    error = (result.token_grads_P2LTD - scored.token_grads_P2LTD).norm() / scored.token_grads_P2LTD.norm()
    assert error < 1e-5 and scored.token_grads_P2LTD.any()
    assert spent["step"] == pytest.approx(spent["sample"] + spent["gradient"])


@pytest.mark.parametrize(
    ("mllm", "shape"),
    [(QUICK.mllm, QUICK.works["paper"]), (FULL.mllm, SHAPES["compact"]), (FULL.mllm, SHAPES["paper"])],
)
def test_template_answers_have_as_many_tokens_and_draw_their_values_only(mllm: MLLMShape, shape: WorkShape) -> None:
    small = dataclasses.replace(QUICK.mllm, vocabulary=mllm.vocabulary)
    few = dataclasses.replace(shape, grid_hw=(2, 2), num_pairs=1, group_size=2)
    work = make_work(small, few, "template")
    result, _ = ours(work, 0)
    assert (result.num_tokens_PG == 2 * shape.num_attributes * shape.value + 1).all()  # drawn
    tokenizer, prompt = work.mllm.tokenizer, work.engine.prompt
    for ids in result.token_ids_PGR[0].tolist():
        assert tokenizer.unk_token_id not in ids
        said = json.loads(tokenizer.decode(ids, skip_special_tokens=True))
        assert set(said["bird_1"]) == set(said["bird_2"]) == set(prompt.attributes) and said["same"] in ("yes", "no")
        assert len(prompt.attributes) == shape.num_attributes
        assert all(said["bird_1"][name] in values for name, values in prompt.attributes.items())


def test_the_deterministic_mode_writes_the_same_answers_but_for_rounding(work: Work) -> None:
    assert _differing(QUICK, work.shape, work) < 0.2


def test_equal_seeds_make_equal_models_and_tokens(work: Work) -> None:
    again = make_work(QUICK.mllm, QUICK.works["compact"])
    assert torch.equal(again.tokens_NLTD, work.tokens_NLTD)
    for a, b in zip(again.mllm.model.parameters(), work.mllm.model.parameters(), strict=True):
        assert torch.equal(a, b) and a.any()


def test_ratios_are_medians_of_those_of_the_rounds() -> None:
    rounds = [
        {"ours": {"step": 1.0, "sample": 0.5, "gradient": 0.5}, "naive": {"step": 4.0, "sample": 2.0, "gradient": 2.0}},
        {"ours": {"step": 10.0, "sample": 5.0, "gradient": 5.0}, "naive": {"step": 60.0, "sample": 25.0, "gradient": 35.0}},
        {"ours": {"step": 2.0, "sample": 1.0, "gradient": 1.0}, "naive": {"step": 10.0, "sample": 2.0, "gradient": 8.0}},
    ]  # fmt: skip
    for each in rounds:
        each["template"] = {phase: seconds / 2 for phase, seconds in each["ours"].items()}
    shape = QUICK.works["compact"]
    flops = shape.num_pairs * gradient_flops(QUICK.mllm, shape.before, shape.own, shape.answer, shape.group_size)
    found = _ratios(QUICK, shape, rounds, [flops, flops / 10, flops / 4])
    assert found["speedup_vs_naive"] == 5.0 and found["speedup_vs_trl"] is None and found["speedup_template"] == 2.0
    assert found["phases_vs_naive"] == {"sample": 4.0, "gradient": 7.0}
    assert found["flop_bound_ratio"] == 0.5  # of 0.5, 0.5 and 0.25


def test_without_its_environment_trl_is_said_to_be_absent(work: Work, tmp_path: Path) -> None:
    with pytest.raises(NoPeer, match="make bench-setup"), trl_peer(work, 512, tmp_path / "python"):
        pass
    # An environment that holds no TRL
    with pytest.raises(NoPeer, match=r"ended: .*trl"), trl_peer(work, 512, Path(sys.executable)):
        pass


@pytest.mark.slow
def test_the_bench_says_what_it_promises() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "saga_ray", "bench", "scorer", "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=1200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for shape in ("compact", "paper"):
        found = report[shape]
        for key in ("speedup_vs_naive", "speedup_template", "flop_bound_ratio", "peak_memory_ratio"):
            assert found[key] > 0
        assert found["gradient_error"] < 1e-5 and 0 <= found["differing_completions"] <= 1
        assert (found["speedup_vs_trl"] is None) == ("absent" in found["trl"])
    assert report["machine"]["threads"] == 1
