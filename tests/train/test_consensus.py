from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saga_ray.config import LossWeights
from saga_ray.configure import ConfigError
from saga_ray.encoder.encoder import Encoder, build_encoder
from saga_ray.mllm.answers import parse_answer
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.scorer.prompt import run_prompt
from saga_ray.train.consensus import (
    FIRST_MICRO_BATCH,
    Consensus,
    add_description,
    another_class,
    consensus,
    drawn_words,
    lesson_pairs,
    other_words,
    true_shares,
)
from saga_ray.train.context import LocalContext
from saga_ray.train.embed import load_images
from saga_ray.train.generations import Generations
from saga_ray.train.loop import Trainer
from saga_ray.train.optim import freeze_unreached
from saga_ray.train.step import accumulate_gradients
from saga_ray.types import Dataset, ImageTable, ScoreRequest, ScoreResult
from tests.train.small import small_model, small_run_config, stream
from tests.train.test_loop import StopAfter, Stopped, _equal, _lines, _train, _weights

CPU = LocalContext(torch.device("cpu"))


def test_a_tally_worked_by_hand() -> None:
    tally: dict = {}
    for label, colour in ((0, "red"), (0, "red"), (0, "red"), (0, "blue"), (1, "red")):
        add_description(tally, label, {"wing": colour})
    assert tally == {0: {"wing": {"red": 3.0, "blue": 1.0}}, 1: {"wing": {"red": 1.0}}}
    # Shares 3/4 and 1/4 within class 0; on average over classes 7/8 and 1/8: squared over mean, 9/14 to 7/14.
    taught = consensus(tally, 2.0)
    assert taught[0]["wing"]["red"] == pytest.approx(9 / 16)
    assert taught[0]["wing"]["blue"] == pytest.approx(7 / 16)
    assert taught[1]["wing"] == {"red": 1.0}


def test_what_is_written_of_every_class_alike_is_not_preferred() -> None:
    """The MLLM calls everything red half of the time; of class 1 it says blue more often than of others."""
    tally: dict = {0: {"wing": {"red": 50.0, "green": 50.0}}, 1: {"wing": {"red": 50.0, "blue": 50.0}}}
    taught = consensus(tally, 3.0)
    assert max(taught[0]["wing"], key=taught[0]["wing"].get) == "green"
    assert max(taught[1]["wing"], key=taught[1]["wing"].get) == "blue"


@given(
    st.dictionaries(
        st.integers(0, 5), st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1), min_size=1
    ),
    st.floats(0.5, 6.0),
)
def test_shares_sum_to_one_and_do_not_depend_on_order_or_on_how_often_was_read(counts: dict, sharpness: float) -> None:
    def tallied(factor: float, reverse: bool) -> dict:
        tally: dict = {}
        for label, of_class in sorted(counts.items(), reverse=reverse):
            tally[label] = {"wing": {v: factor * n for v, n in sorted(of_class.items(), reverse=reverse)}}
        return consensus(tally, sharpness)

    once, thrice = tallied(1.0, False), tallied(3.0, True)
    assert json.dumps(once) == json.dumps(tallied(1.0, True))
    for label, of_class in once.items():
        assert sum(of_class["wing"].values()) == pytest.approx(1.0)
        assert of_class["wing"] == pytest.approx(thrice[label]["wing"])


def test_words_are_drawn_as_often_as_they_are_shared() -> None:
    uniforms = (np.arange(1000) + 0.5) / 1000
    words = [drawn_words({"wing": {"red": 0.7, "blue": 0.3}}, ["wing"], [u])["wing"] for u in uniforms]
    assert words.count("red") == 700 and words.count("blue") == 300


@given(st.integers(1, 8), st.integers(1, 6))
def test_a_lesson_shows_every_image_once_and_stays_within_shards(num_shards: int, half: int) -> None:
    per_shard = 2 * half
    pairs = lesson_pairs(num_shards * per_shard, num_shards)
    assert sorted(i for pair in pairs for i in pair) == list(range(num_shards * per_shard))
    assert all(a // per_shard == b // per_shard for a, b in pairs)


def test_the_ceiling_is_taught_the_true_words_of_training_classes(dataset: Dataset) -> None:
    shares, table = true_shares(dataset), dataset.train
    assert sorted(shares) == list(range(len(table.class_names)))
    for row in range(0, len(table), 5):
        of_class = shares[int(table.labels_N[row])]
        for column, attribute in enumerate(dataset.attribute_names):
            assert of_class[attribute] == {dataset.attribute_values[column][table.truth_NA[row, column]]: 1.0}


def _begun(mllm: Path, dataset: Dataset, **changes: object) -> tuple:
    config = small_run_config(mllm, "saga+consensus", mllm__dtype="float64", **changes)
    scorer, model = LocalScorer(build_engine(config)), small_model(config, dataset)
    teacher = Consensus(config, dataset, run_prompt(config), scorer, CPU)
    teacher.begin(model.encoder, lambda done, of: None)
    return config, scorer, model, teacher


def test_lessons_describe_both_images_with_words_of_their_classes(mllm: Path, dataset: Dataset) -> None:
    config, _, model, teacher = _begun(mllm, dataset)
    # Of some class the random MLLM may write nothing in form: it is not taught.
    assert len(teacher.shares) >= len(dataset.train.class_names) - 2
    batch = next(stream(config, dataset))
    tokens = model.encoder.encode_tokens(torch.from_numpy(batch.images_NHWC))
    request = teacher.request(batch, tokens)
    assert request is not None and request.options.lesson and len(request.pairs) > 0
    for pair, (text,) in zip(request.pairs, request.answers, strict=True):
        answer = parse_answer(text, run_prompt(config).verdict_key)
        assert answer.verdict == int(pair.same_class)
        for position, said in zip((pair.first, pair.second), answer.descriptions(text), strict=True):
            shares = teacher.shares[int(batch.labels_N[position])]
            assert said.keys() == run_prompt(config).attributes.keys()
            assert all(shares[attribute][value] > 0 for attribute, value in said.items())
    assert teacher.request(batch, tokens).answers == request.answers, "lessons are a function of the micro-batch"


def test_the_tally_replaces_what_is_taught_at_the_set_step_only(mllm: Path, dataset: Dataset) -> None:
    config, scorer, model, teacher = _begun(mllm, dataset, consensus__refresh_steps=2)
    first = dict(teacher.shares)
    batches = stream(config, dataset)
    for step in (1, 2):
        accumulate_gradients(model, batches, scorer, config, CPU, step, teacher)
        heard = set(teacher.tally)
        teacher.end_step(step)
        if step == 1:
            assert heard and teacher.shares == first
    assert teacher.tally == {} and teacher.shares != first
    assert teacher.shares.keys() == first.keys(), "classes that were not heard keep what they had"
    copy = Consensus(config, dataset, run_prompt(config), scorer, CPU)
    copy.restore(json.loads(json.dumps(teacher.state())))
    assert copy.shares == teacher.shares and copy.tally == teacher.tally


def test_as_controls_classes_are_taught_what_was_written_of_another_or_other_words(
    mllm: Path, dataset: Dataset
) -> None:
    config, _, _, own = _begun(mllm, dataset)
    number = len(dataset.train.class_names)
    taught = {label: another_class(label, number, config.seed) for label in range(number)}
    assert sorted(taught.values()) == list(range(number)) and all(a != b for a, b in taught.items())
    *_, other = _begun(mllm, dataset, consensus__source="another-class")
    assert own.shares and {taught[label]: of_class for label, of_class in own.shares.items()} == other.shares
    *_, other = _begun(mllm, dataset, consensus__source="other-words")
    assert own.shares != other.shares == other_words(own.shares, run_prompt(config).attributes, config.seed)


def test_other_words_leave_what_classes_have_in_common() -> None:
    shares = {
        0: {"wing": {"red": 0.75, "blue": 0.25}, "leg": {"thin": 1.0}},
        1: {"wing": {"red": 1.0}, "leg": {"reddish": 1.0}},
    }
    offered = {"wing": ("red", "blue", "green"), "leg": None}
    taught = other_words(shares, offered, seed=3)
    red, blue = taught[0]["wing"]
    assert taught[0]["wing"] == {red: 0.75, blue: 0.25} and taught[1]["wing"] == {red: 1.0}
    assert red != "red" and blue != "blue" and {red, blue} < set(offered["wing"])
    assert taught[0]["leg"] == {"reddish": 1.0} and taught[1]["leg"] == {"thin": 1.0}, "of two, each takes the other"
    assert other_words(shares, {"wing": ("red", "green"), "leg": ("thin", "fat")}, 3)[0]["wing"]["blue"] == 0.25
    assert len({str(other_words(shares, offered, seed)) for seed in range(20)}) == 2, "seeds draw among both cycles"


def test_the_lessons_gradient_is_divided_by_the_words_that_are_taught(mllm: Path, dataset: Dataset) -> None:
    """Against the scorer's own sums, carried through the tower by plain autograd."""
    weights = {"metric": 0.0, "grpo": 0.0, "alignment": 0.0, "consensus": 2.0}
    changes = {f"loss__weights__{name}": value for name, value in weights.items()}
    config, scorer, model, teacher = _begun(mllm, dataset, **changes)
    batch = next(stream(config, dataset))
    encoded = model.encoder.encode_tokens(torch.from_numpy(batch.images_NHWC))
    result = scorer.score(teacher.request(batch, encoded))
    grads_NLTD = torch.zeros_like(encoded.tokens_NLTD)
    for pair, grads_2LTD in zip(teacher.request(batch, encoded).pairs, result.token_grads_P2LTD, strict=True):
        grads_NLTD[pair.first] += grads_2LTD[0]
        grads_NLTD[pair.second] += grads_2LTD[1]
    tower = list(model.encoder.tower.parameters())
    wanted = torch.autograd.grad(
        encoded.tokens_NLTD, tower, 2.0 * grads_NLTD / int(result.num_taught_P.sum()), allow_unused=True
    )
    report = accumulate_gradients(model, iter([batch]), scorer, config, CPU, 1, teacher)
    for parameter, grad in zip(tower, wanted, strict=True):
        assert torch.allclose(parameter.grad, torch.zeros_like(parameter) if grad is None else grad, atol=1e-12)
    loss = float(result.loss_P.sum()) / int(result.num_taught_P.sum())
    assert report.metrics["loss/consensus"] == pytest.approx(loss)
    assert report.metrics["loss/total"] == pytest.approx(2.0 * loss)


def test_the_anchor_is_the_relative_distance_to_the_initial_tokens(mllm: Path, dataset: Dataset) -> None:
    config = small_run_config(
        mllm, "potential-field+anchor", mllm__dtype="float64", loss__weights__anchor=3.0, loss__weights__metric=0.0
    )
    model = small_model(config, dataset)
    batch = next(stream(config, dataset))
    with torch.no_grad():
        for parameter in model.encoder.tower.parameters():
            parameter.mul_(1.05)
    images = torch.from_numpy(batch.images_NHWC)
    now, before = model.encoder.encode_tokens(images).tokens_NLTD, model.reference.encode_tokens(images).tokens_NLTD
    per_level = [
        ((now[n, level] - before[n, level]).norm() / before[n, level].norm()) ** 2
        for n in range(now.shape[0])
        for level in range(now.shape[1])
    ]
    loss = sum(per_level) / len(per_level)
    tower = [p for p in model.encoder.tower.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(3.0 * loss, tower, allow_unused=True)
    report = accumulate_gradients(model, iter([batch]), None, config, CPU, 1)
    assert report.metrics["loss/anchor"] == pytest.approx(float(loss.detach()))
    for parameter, grad in zip(tower, wanted, strict=True):
        if grad is not None:
            assert torch.allclose(parameter.grad, grad, rtol=1e-8, atol=1e-12)


def test_a_reference_kl_is_asked_of_the_initial_encoder_and_carried_back(mllm: Path, dataset: Dataset) -> None:
    config = small_run_config(
        mllm, "potential-field+reference-kl", mllm__dtype="float64", loss__weights__metric=0.0,
        loss__weights__reference_kl=2.0,
    )  # fmt: skip
    scorer, model = LocalScorer(build_engine(config)), small_model(config, dataset)
    batch = next(stream(config, dataset))
    first = accumulate_gradients(model, iter([batch]), scorer, config, CPU, 1)
    assert first.metrics["loss/reference_kl"] == pytest.approx(0.0, abs=1e-12)
    with torch.no_grad():
        for parameter in model.encoder.tower.parameters():
            parameter.mul_(1.02)
    moved = accumulate_gradients(model, iter([batch]), scorer, config, CPU, 2)
    assert moved.metrics["loss/reference_kl"] > 1e-6
    assert moved.metrics["gradient/reference_kl"] > 0 and moved.metrics["loss/total"] > 0
    # Along its own gradient the KL changes as its length says; the answers, drawn by the same numbers, stay the same.
    parameters = [parameter for parameter in model.encoder.tower.parameters() if parameter.grad is not None]
    gradients = [parameter.grad.clone() / 2.0 for parameter in parameters]
    length = torch.stack([gradient.norm() for gradient in gradients]).norm()
    found, step = [], 1e-5
    for side in (1, -1):
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient / length, alpha=step if side == 1 else -2 * step)
        report = accumulate_gradients(model, iter([batch]), scorer, config, CPU, 2)
        found.append(report.metrics["loss/reference_kl"])
    assert (found[0] - found[1]) / (2 * step) == pytest.approx(float(length), rel=1e-3)


def test_a_resumed_run_teaches_as_if_it_had_never_stopped(mllm: Path, dataset: Dataset, tmp_path: Path) -> None:
    config = small_run_config(
        mllm, "saga+consensus", optim__steps=4, checkpoint__every_steps=2, consensus__refresh_steps=2
    )
    scorer = LocalScorer(build_engine(config))
    _train(config, dataset, tmp_path, "whole", scorer)
    with pytest.raises(Stopped):
        _train(config, dataset, tmp_path, "parts", scorer, progress=StopAfter(3))
    _train(config, dataset, tmp_path, "parts", scorer)
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")
    assert _equal(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))
    page = (tmp_path / "parts" / "consensus.html").read_text()
    assert dataset.train.class_names[0] in page


class Remembering(LocalScorer):
    """Keeps every request."""

    def __init__(self, engine: ScoringEngine) -> None:
        super().__init__(engine)
        self.requests: list[ScoreRequest] = []

    def score(self, request: ScoreRequest) -> ScoreResult:
        self.requests.append(request)
        return super().score(request)


GENERATIONS = {"data__hard_share": 0.0, "optim__steps": 8, "consensus__generations": 3, "consensus__refresh_steps": 1}


def test_each_generation_begins_anew_with_what_was_read_through_the_one_before(
    mllm: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[dict[str, torch.Tensor]] = []
    begins_anew = Trainer._next_generation

    def remembering(trainer: Trainer) -> None:
        left.append({name: weight.clone() for name, weight in trainer.model.encoder.state_dict().items()})
        begins_anew(trainer)

    monkeypatch.setattr(Trainer, "_next_generation", remembering)
    reached: list[float] = []

    def asked(encoder: Encoder, images_NHWC: torch.Tensor, weights: LossWeights, has_metric: bool) -> list[str]:
        reached.append(weights.consensus)
        return freeze_unreached(encoder, images_NHWC, weights, has_metric)

    monkeypatch.setattr("saga_ray.train.loop.freeze_unreached", asked)
    first = {"consensus__first_metric": "infonce", "consensus__first_lr_tower": 1e-4}
    config = small_run_config(mllm, "saga+consensus", **first, **GENERATIONS)
    assert Generations(config, 8).starts == (0, 2, 4) and Generations(config, 141).starts == (0, 35, 70)
    scorer = Remembering(build_engine(config))
    _train(config, dataset, tmp_path, "three", scorer)
    alone = small_run_config(
        mllm,
        "potential-field+pooler",
        loss__metric="infonce",
        optim__lr_tower=1e-4,
        optim__steps=2,
        data__hard_share=0.0,
    )
    _train(alone, dataset, tmp_path, "alone")
    assert len(left) == 2 and _equal(left[0], _weights(tmp_path / "alone"))
    # The MLLM reads levels that the first encoder's loss does not reach, and weight decay may not move these.
    assert reached == [0.0, 1.0, 1.0, 0.0]

    lines, of_alone = _lines(tmp_path / "three"), _lines(tmp_path / "alone")
    assert [line["loss/metric"] for line in lines[:2]] == [line["loss/metric"] for line in of_alone]
    assert ["scorer/tokens" in line for line in lines] == [False] * 2 + [True] * 6
    rates = [line["optim/lr_tower"] for line in lines]
    # The first has a rate of its own; the last alone comes to rest.
    assert rates[:2] == [1e-4] * 2 and rates[2:6] == [config.optim.lr_tower] * 4 and rates[5] > rates[6] > rates[7]

    readings = [request for request in scorer.requests if request.micro_batch == FIRST_MICRO_BATCH]
    assert len(readings) == 2 and readings[0].pairs == readings[1].pairs
    assert not torch.equal(readings[0].tokens.tokens_NLTD, readings[1].tokens.tokens_NLTD)
    initial, seen = build_encoder(config), {request.micro_batch: request for request in scorer.requests}
    for batch, begins in zip(list(stream(config, dataset, 2, 6)), (True, False, True, False), strict=True):
        with torch.no_grad():
            tokens = initial.encode_tokens(torch.from_numpy(batch.images_NHWC)).tokens_NLTD
        assert torch.equal(seen[batch.index].tokens.tokens_NLTD, tokens) == begins


def test_a_reading_forgets_what_was_heard_before_it(mllm: Path, dataset: Dataset) -> None:
    config = small_run_config(mllm, "saga+consensus", consensus__generations=2)
    scorer, encoder = LocalScorer(build_engine(config)), build_encoder(config)
    fresh, other = (Consensus(config, dataset, run_prompt(config), scorer, CPU) for _ in range(2))
    other.tally = other.shares = other.heard = {0: {"crown color": {"mauve": 99.0}}}
    for each in (fresh, other):
        each.begin(encoder, lambda done, of: None)
    other.end_step(config.consensus.refresh_steps)  # nothing replaces what was read
    assert (other.shares, other.tally, other.heard) == (fresh.shares, {}, fresh.heard)


def test_an_image_that_cannot_be_read_says_nothing_of_its_class(
    mllm: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, whole = _begun(mllm, dataset)
    label = next(iter(whole.heard))

    def none_of_label(table: ImageTable, rows: list[int], size: int, skip_broken: bool) -> tuple:
        images_NHWC, _ = load_images(table, rows, size, skip_broken)
        return images_NHWC, table.labels_N[rows] != label

    monkeypatch.setattr("saga_ray.train.consensus.load_images", none_of_label)
    *_, without = _begun(mllm, dataset)
    assert without.heard == {other: said for other, said in whole.heard.items() if other != label}


def test_tokens_of_a_reading_are_counted_by_the_step_behind_it(mllm: Path, dataset: Dataset, tmp_path: Path) -> None:
    config, scorer, _, teacher = _begun(mllm, dataset, optim__steps=2)
    assert teacher.tokens_read > 0
    _train(config, dataset, tmp_path, "a", scorer)
    first, second = (line["scorer/tokens"] for line in _lines(tmp_path / "a"))
    assert first - second > teacher.tokens_read / 2


def test_a_run_that_stops_between_or_within_generations_goes_on_alike(
    mllm: Path, dataset: Dataset, tmp_path: Path
) -> None:
    config = small_run_config(
        mllm, "potential-field+consensus", optim__steps=6, checkpoint__every_steps=1, consensus__generations=2,
        consensus__first_metric="proxy-anchor", consensus__first_lr_tower=1e-4,
    )  # fmt: skip
    scorer = LocalScorer(build_engine(config))
    _train(config, dataset, tmp_path, "whole", scorer)
    for last in (2, 3, 4):  # what is left is a checkpoint within the first, between the two, and within the second
        name = f"stopped-after-{last}"
        with pytest.raises(Stopped):
            _train(config, dataset, tmp_path, name, scorer, progress=StopAfter(last))
        _train(config, dataset, tmp_path, name, scorer)
        assert _lines(tmp_path / name) == _lines(tmp_path / "whole")
        assert _equal(_weights(tmp_path / name), _weights(tmp_path / "whole"))


def test_generations_that_cannot_be_are_refused(mllm: Path) -> None:
    for key in ("metric", "consensus"):
        with pytest.raises(ConfigError, match=r"consensus\.generations: 2 needs a consensus and a metric loss"):
            small_run_config(mllm, "saga+consensus", consensus__generations=2, **{f"loss__weights__{key}": 0.0})
    with pytest.raises(ConfigError, match=r"consensus\.generations: 3 need more than optim\.steps=3"):
        small_run_config(mllm, "saga+consensus", consensus__generations=3, optim__steps=3)
    with pytest.raises(ValueError, match=r"consensus\.generations: 3 need more than 2 steps"):
        Generations(small_run_config(mllm, "saga+consensus", consensus__generations=3), 2)
