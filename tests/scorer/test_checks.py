"""What is refused before it is scored, and replies that are not taken."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_ray.scorer.checks import BadReply, Reads, check_request, check_result
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.length import check_prompt_fits
from saga_ray.scorer.local import build_engine
from saga_ray.scorer.wire import result_from_arrays, result_to_arrays
from saga_ray.types import ImagePair, ScoreOptions, VisualTokens
from tests.helpers.scoring import small_request, small_run_config


@pytest.fixture(scope="module")
def engine(folder: Path) -> ScoringEngine:
    return build_engine(small_run_config(folder))


def _tokens(tokens_NLTD: torch.Tensor) -> VisualTokens:
    return VisualTokens(tokens_NLTD, (2, 2))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tokens": _tokens(torch.zeros(8, 4, 3, 64))}, r"shape \(8, 4, 3, 64\) do not fit"),
    ({"tokens": _tokens(torch.zeros(8, 4, 4, 64, dtype=torch.int64))}, r"torch\.int64; give float32"),
    ({"tokens": _tokens(torch.zeros(8, 4, 4, 64, device="meta"))}, "on device meta"),
    ({"tokens": _tokens(torch.full((8, 4, 4, 64), torch.inf))}, "hold NaN or infinity"),
    ({"reference": _tokens(torch.full((8, 4, 4, 64), torch.nan))}, "reference tokens hold NaN"),
    ({"reference": _tokens(torch.zeros(7, 4, 4, 64))}, "reference: 7 images for 8"),
    ({"pairs": (ImagePair(0, 8, True, 5),)}, r"pair 5 shows image 8, but the request holds 8 images.*from 0 to 7"),
    ({"pairs": (ImagePair(-1, 2, True, 0),)}, "shows image -1"),
    ({"options": ScoreOptions(lesson=True)}, "answers: missing"),
    ({"answers": (("a",),)}, "one group per pair"),
    ({"rewards_PG": torch.zeros(2, 2)}, "rewards: given without answers"),
    ({"answers": (("a", "b"),) * 2, "rewards_PG": torch.zeros(2, 3)}, r"rewards: shape \(2, 3\)"),
    ({"answers": (("a",),) * 2, "rewards_PG": torch.full((2, 1), torch.nan)}, "rewards: NaN"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_request_that_cannot_be_scored_is_refused_in_a_sentence(
    engine: ScoringEngine, change: dict[str, Any], message: str
) -> None:
    request = replace(small_request(2, dtype=torch.float32), **change)
    for check in (lambda: engine.score(request), lambda: check_request(request, Reads.told(engine.describe()))):
        with pytest.raises(ValueError, match=message) as caught:
            check()
        assert "\n" not in str(caught.value)


def test_a_prompt_that_is_too_long_is_refused_with_both_lengths(folder: Path) -> None:
    engine = build_engine(small_run_config(folder))
    longest = engine.mllm.model.config.text_config.max_position_embeddings
    engine.score(small_request(1))
    engine.max_new_tokens = longest
    engine._layouts.clear()
    with pytest.raises(
        ValueError, match=rf"grpo\.max_new_tokens: {longest} behind a prompt of \d+ positions.*{longest}"
    ):
        engine.score(small_request(1))


def test_a_run_whose_prompt_is_too_long_is_refused_before_the_mllm_is_loaded(folder: Path, tmp_path: Path) -> None:
    config = small_run_config(folder, data__image_size=32)
    check_prompt_fits(config)
    positions = int(build_engine(config).mllm.layout(build_engine(config).texts, (2, 2)).positions_3C.max()) + 1
    path = Path(shutil.copytree(folder, tmp_path / "mllm"))
    values = json.loads((path / "config.json").read_text())
    for longest, fits in ((positions + 40, True), (positions + 39, False)):
        values["text_config"]["max_position_embeddings"] = longest
        (path / "config.json").write_text(json.dumps(values))
        (path / "model.safetensors").write_bytes(b"")  # no weights are read
        short = small_run_config(path, data__image_size=32)
        if fits:
            check_prompt_fits(short)
            continue
        with pytest.raises(ValueError, match=rf"behind a prompt of {positions} positions is longer than the {longest}"):
            check_prompt_fits(short)


def test_groups_of_one_are_refused_by_the_configuration(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"grpo\.group_size"):
        small_run_config(folder, grpo__group_size=1)


def test_a_reply_of_other_shape_or_with_numbers_that_are_none_is_not_taken(engine: ScoringEngine) -> None:
    request = small_request(3, dtype=torch.float32)
    result = engine.score(request)
    group_size = engine.config.grpo.group_size
    check_result(result, request, group_size)
    grads = result.token_grads_P2LTD
    for change, message in (
        ({"token_grads_P2LTD": grads[:2]}, "token_grads_P2LTD has shape"),
        ({"token_grads_P2LTD": grads[:, :, :1]}, "token_grads_P2LTD has shape"),
        ({"rewards_PG": result.rewards_PG * torch.nan}, "rewards_PG holds NaN"),
        ({"token_grads_P2LTD": grads + torch.inf}, "token_grads_P2LTD holds NaN or infinity"),
        ({"rewards_PG": result.rewards_PG[:, 1:]}, "rewards_PG has shape"),
        ({"token_ids_PGR": result.token_ids_PGR[:, 1:]}, "token_ids_PGR has shape"),
        ({"token_ids_PGR": result.token_ids_PGR[:, :, 0]}, "token_ids_PGR has shape"),
        ({"attention_sum_P2T": result.attention_sum_P2T[:, :, 1:]}, "attention_sum_P2T has shape"),
        ({"loss_P": result.loss_P[:, None]}, "loss_P has shape"),
        ({"texts_PG": result.texts_PG[:1]}, "texts of"),
        ({"texts_PG": tuple(texts[1:] for texts in result.texts_PG)}, "texts of"),
        ({"reference_kl_P": torch.zeros(3)}, "less or more than what was asked: reference_kl_P"),
    ):
        with pytest.raises(BadReply, match=message):
            check_result(replace(result, **change), request, group_size)
    with pytest.raises(BadReply, match="has shape"):
        check_result(result, request, group_size + 1)
    asked = replace(request, reference=request.tokens)
    check_result(engine.score(asked), asked, group_size)
    with pytest.raises(BadReply, match="less or more than what was asked: reference_grads_P2LTD, reference_kl_P"):
        check_result(result, asked, group_size)


def test_a_reply_that_lacks_something_is_a_bad_one(engine: ScoringEngine) -> None:
    arrays = result_to_arrays(engine.score(small_request(2, dtype=torch.float32)))
    result_from_arrays(arrays)
    for name in arrays:
        with pytest.raises(BadReply, match="not a whole result"):
            result_from_arrays({key: value for key, value in arrays.items() if key != name})
    with pytest.raises(BadReply, match="not a whole result"):
        result_from_arrays(arrays | {"what": arrays["loss_P"]})
