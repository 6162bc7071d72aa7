import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saga_ray.data.demo import birds
from saga_ray.data.demo.world import DemoSource, demo_dataset
from saga_ray.encoder.encoder import Encoder, build_encoder
from saga_ray.leaderboard import diagnosis_plots as plots
from saga_ray.leaderboard.consensus_page import wavering, write_consensus_page
from saga_ray.leaderboard.figures import to_png
from saga_ray.leaderboard.plots import CurveRun
from saga_ray.mllm.prompt import Prompt
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.train.diagnosis import bird_cells, diagnose, drift, probes, where
from saga_ray.train.naming import (
    Questions,
    ask,
    asking_engine,
    first_attention,
    heard_shares,
    naming,
    said_of_images,
    sample_pairs,
    sample_questions,
    validation_metrics,
    validation_questions,
)
from saga_ray.types import Dataset, ImagePair, ScoreRequest, ScoreResult
from tests.helpers.small_mllm import ATTRIBUTES, small_answer
from tests.train.small import small_run_config

PROMPT = Prompt(
    "bird watcher", "bird", {name: tuple(values) for name, values in ATTRIBUTES.items()}, "same", "structured"
)
GREY = np.zeros((2, 32, 32, 3), np.uint8)


def heard(texts: Sequence[Sequence[str]], verdicts: Sequence[Sequence[int]], rewards: Sequence[Sequence[int]]) -> Any:
    """As much of a ScoreResult as is read."""
    verdicts_PG = torch.tensor(verdicts, dtype=torch.int8)
    rewards_PG = torch.tensor(rewards, dtype=torch.float64)
    return SimpleNamespace(
        texts_PG=tuple(map(tuple, texts)),
        verdicts_PG=verdicts_PG,
        well_formed_PG=verdicts_PG >= 0,
        rewards_PG=rewards_PG,
    )


@pytest.fixture(scope="module")
def known(dataset: Dataset) -> Dataset:
    """The small world with a truth that the small MLLM's own two attributes can say."""
    tables = {}
    for split in ("train", "validation", "test"):
        table = dataset.split(split)
        tables[split] = replace(table, truth_NA=np.stack([table.labels_N % 2, table.labels_N // 2 % 2], axis=1))
    values = tuple(map(tuple, ATTRIBUTES.values()))
    return replace(dataset, attribute_names=tuple(ATTRIBUTES), attribute_values=values, **tables)


@pytest.fixture(scope="module")
def scorer(mllm: Path) -> LocalScorer:
    return LocalScorer(build_engine(small_run_config(mllm)))


# --- naming ---


def test_shares_of_three_pairs_worked_by_hand() -> None:
    truth_NA = np.array([["hooked", "plain"], ["straight", "barred"]])
    pairs = (ImagePair(0, 1, False, 0), ImagePair(0, 0, True, 1), ImagePair(1, 1, True, 2))
    asked = Questions(GREY, np.arange(2), pairs, ("bill", "wing"), truth_NA)
    all_right = small_answer("hooked", "plain", "straight", "barred", "no")
    bill_wrong = small_answer("straight", "plain", "straight", "barred", "yes")
    own = small_answer("hooked", "plain", "hooked", "plain", "yes")
    third = small_answer("straight", "plain", "straight", "plain", "yes")  # both wings wrong
    texts = [[all_right, bill_wrong], [own, own], [third, all_right]]
    shares = heard_shares(heard(texts, [[0, 1], [1, 1], [1, -1]], [[1, 0], [1, 1], [1, 0]]), asked, PROMPT)
    # The last answer has no verdict: it counts as wrong in everything, though it would parse.
    assert shares["attributes"] == {"bill": pytest.approx(9 / 12), "wing": pytest.approx(8 / 12)}
    assert shares["named"] == pytest.approx(17 / 24)
    assert shares["verdict_different"] == 0.5 and shares["verdict_same"] == 0.75 and shares["verdict"] == 0.625
    assert shares["well_formed"] == pytest.approx(5 / 6) and shares["mixed"] == pytest.approx(2 / 3)


def test_words_are_read_whatever_their_case_and_underscores() -> None:
    text = 'Well: {"bird_1": {"Bill_Shape": "Long  Hooked"}, "bird_2": {"Bill_Shape": ["a", "b"]}, "same": "no"}'
    assert said_of_images(text, "same") == ({"bill shape": "long hooked"}, {"bill shape": "b"})
    assert said_of_images("no json", "same") == ({}, {})


def test_without_truth_or_structured_prompt_only_verdicts_are_measured() -> None:
    pairs = (ImagePair(0, 0, True, 0), ImagePair(0, 1, False, 1))
    result = heard([["{}"], ["{}"]], [[1], [1]], [[1], [0]])
    truth_NA = np.array([["hooked", "plain"]] * 2)
    for asked, prompt in (
        (Questions(GREY, np.arange(2), pairs), PROMPT),
        (Questions(GREY, np.arange(2), pairs, ("bill", "wing"), truth_NA), replace(PROMPT, variant="generic")),
        (Questions(GREY, np.arange(2), pairs, ("song", "nest"), truth_NA), PROMPT),
    ):
        shares = heard_shares(result, asked, prompt)
        assert shares["attributes"] == {} and shares["named"] is None and shares["verdict"] == 0.5


def test_pairs_are_half_of_one_class_and_half_of_nearest_classes() -> None:
    labels_N = np.repeat(np.arange(4), 3)
    distances_CC = np.array([[0, 1, 5, 5], [1, 0, 5, 5], [5, 5, 0, 2], [5, 5, 2, 0]])
    pairs = sample_pairs(labels_N, distances_CC, 40)
    assert pairs == sample_pairs(labels_N, distances_CC, 40) != sample_pairs(labels_N, distances_CC, 40, seed=5)
    labels = [(int(labels_N[a]), int(labels_N[b])) for a, b in pairs]
    assert all(a == b for a, b in labels[::2]) and all(a // 2 == b // 2 and a != b for a, b in labels[1::2])
    assert all(a != b for a, b in pairs)
    assert [sum(a == label for a, _ in labels[::2]) for label in range(4)] == [5] * 4


def test_a_class_of_one_picture_gives_no_pair_of_its_own() -> None:
    pairs = sample_pairs(np.array([0, 1, 1]), np.zeros((2, 2)), 12)
    assert all({a, b} == {1, 2} for a, b in pairs[::2])
    with pytest.raises(ValueError, match="two classes"):
        sample_pairs(np.array([0, 1]), np.zeros((2, 2)), 4)


def test_the_nearest_class_is_that_of_the_truth_or_of_the_centroids(dataset: Dataset) -> None:
    table = dataset.validation
    num_classes = len(table.class_names)
    truth_CA = table.truth_NA[:: len(table) // num_classes]
    asked = sample_questions(dataset, "validation", 32, 24)
    for pair in asked.pairs[1::2]:
        first, second = (table.labels_N[asked.rows_N[i]] for i in (pair.first, pair.second))
        distances_C = (truth_CA[first] != truth_CA).sum(axis=1) + 99 * (np.arange(num_classes) == first)
        assert distances_C[second] == distances_C.min() and not pair.same_class
    words = np.array(dataset.attribute_values[0])[table.truth_NA[asked.rows_N, 0]]
    assert asked.truth_NA[:, 0].tolist() == words.tolist()
    blind = replace(dataset, validation=replace(table, truth_NA=None))
    angles_C = np.array([0.0, 0.1, 2.0, 2.1])
    centroids_CE = np.stack([np.cos(angles_C), np.sin(angles_C)], axis=1)
    asked = sample_questions(blind, "validation", 32, 24, centroids_CE=centroids_CE)
    labels_P2 = table.labels_N[asked.rows_N][[(p.first, p.second) for p in asked.pairs[1::2]]]
    assert asked.truth_NA is None and (labels_P2 // 2 == labels_P2[:, :1] // 2).all()


def test_naming_through_a_small_mllm_depends_on_the_encoder_alone(
    mllm: Path, known: Dataset, scorer: LocalScorer
) -> None:
    config = small_run_config(mllm)
    asked = sample_questions(known, "validation", 32, 12)
    encoder = build_encoder(config)
    engine = asking_engine(scorer.engine, 3)
    shares = naming(encoder, engine, asked, engine.prompt)
    assert shares == naming(encoder, engine, asked, engine.prompt)
    assert set(shares["attributes"]) == {"bill", "wing"} and 0 < shares["well_formed"] <= 1
    greedy = asking_engine(scorer.engine, greedy=True)
    texts_PG = ask(encoder, greedy, asked).result.texts_PG
    assert all(len(texts) == 1 for texts in texts_PG)
    reversed_pairs = replace(asked, pairs=asked.pairs[::-1])
    assert ask(encoder, greedy, reversed_pairs).result.texts_PG == texts_PG[::-1]


def test_attention_is_read_of_every_pair_that_was_described(mllm: Path, known: Dataset, scorer: LocalScorer) -> None:
    asked = sample_questions(known, "validation", 32, 12)
    engine = asking_engine(scorer.engine, 3)
    said = ask(build_encoder(small_run_config(mllm)), engine, asked)
    maps_MT, images_M = first_attention(engine, asked, said)
    expected = []
    for pair, texts, well_formed in zip(asked.pairs, said.result.texts_PG, said.result.well_formed_PG, strict=True):
        first = next((text for text, is_whole in zip(texts, well_formed, strict=True) if is_whole), "")
        sides = zip((pair.first, pair.second), said_of_images(first, "same"), strict=True)
        expected += [image for image, words in sides if words]
    assert images_M.tolist() == expected and len(expected) > 4 and maps_MT.shape == (len(expected), 4)
    np.testing.assert_allclose(maps_MT.sum(axis=1), 1)
    silent = replace(said, result=replace(said.result, well_formed_PG=torch.zeros(12, 3, dtype=torch.bool)))
    assert first_attention(engine, asked, silent)[0].shape == (0, 4)


# --- validation while training ---


class Spy:
    """Hands requests on, and remembers whether the encoder was in evaluation mode meanwhile."""

    def __init__(self, scorer: LocalScorer, encoder: Encoder) -> None:
        self.scorer, self.encoder, self.modes = scorer, encoder, []

    def score(self, request: ScoreRequest) -> ScoreResult:
        self.modes.append(any(module.training for module in self.encoder.modules()))
        assert not request.tokens.tokens_NLTD.requires_grad and not request.options.gradient
        return self.scorer.score(request)

    def describe(self) -> dict[str, str]:
        return self.scorer.describe()


def test_validation_leaves_modes_gradients_weights_and_random_states_alone(
    mllm: Path, known: Dataset, scorer: LocalScorer
) -> None:
    config = small_run_config(mllm)
    encoder = build_encoder(config).train()
    encoder.pooler.eval()  # a module in a mode of its own must come back in it
    for number, parameter in enumerate(encoder.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    weights = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.is_grad_enabled(), torch.get_num_threads()
    spy = Spy(scorer, encoder)
    metrics = validation_metrics(encoder, spy, validation_questions(config, known, 8), scorer.engine.prompt)
    assert spy.modes == [False]
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    assert (torch.is_grad_enabled(), torch.get_num_threads()) == before[2:]
    assert encoder.training and encoder.tower.training and not encoder.pooler.training
    for number, parameter in enumerate(encoder.parameters()):
        assert parameter.requires_grad and torch.equal(parameter.grad, torch.full_like(parameter, float(number)))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in encoder.state_dict().items())
    assert set(metrics) == {
        "validation/verdict",
        "validation/verdict_same",
        "validation/verdict_different",
        "validation/well_formed",
        "validation/naming",
    }
    assert all(0 <= value <= 1 for value in metrics.values())


def test_the_mode_comes_back_when_the_scorer_fails(mllm: Path, known: Dataset, scorer: LocalScorer) -> None:
    encoder = build_encoder(small_run_config(mllm)).train()
    asked = sample_questions(known, "validation", 32, 4)
    broken = replace(asked, pairs=(replace(asked.pairs[0], first=10**6),))
    with pytest.raises(ValueError, match="pairs: pair 0 shows image 1000000"):
        ask(encoder, scorer, broken)
    assert all(module.training for module in encoder.modules()) and torch.is_grad_enabled()


# --- probes, drift, looks ---


class Blank:
    """Pictures that were not drawn here."""

    def load(self, rows: Sequence[int], size: int) -> np.ndarray:
        return np.zeros((len(rows), size, size, 3), np.uint8)


def test_probes_find_what_is_linear_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(0)
    labels_N = np.repeat(np.arange(24), 10)
    truth_NA = np.stack([labels_N % 2, labels_N // 2 % 3, np.zeros_like(labels_N)], axis=1)
    noise_NE = rng.normal(size=(240, 6))
    noise_NE[:, 0] += 8 * truth_NA[:, 0]
    found = probes(noise_NE, truth_NA, labels_N)
    assert set(found) == {0, 1}, "an attribute with one value cannot be probed"
    assert found[0][0] > 0.98 and abs(found[1][0] - 1 / 3) < 0.15
    assert all(0 <= chance <= 0.6 for _, chance in found.values())
    assert found == probes(noise_NE, truth_NA, labels_N)


def test_probes_are_tested_on_classes_that_they_never_saw() -> None:
    """Each class has its own direction, which says nothing of other classes: a probe over pictures would be perfect."""
    labels_N = np.repeat(np.arange(16), 8)
    embeddings_NE = np.eye(16)[labels_N] + np.random.default_rng(1).normal(0, 0.01, (128, 16))
    truth_NA = np.random.default_rng(2).permutation(np.arange(16) % 2)[labels_N][:, None]
    assert probes(embeddings_NE, truth_NA, labels_N, num_folds=4)[0][0] < 0.75


def test_drift_of_a_level_that_grows_and_one_that_turns() -> None:
    before = torch.tensor([[[[3.0, 4.0]], [[1.0, 0.0]]]])  # one picture, two levels, one token
    after = torch.tensor([[[[6.0, 8.0]], [[0.0, 1.0]]]])
    moved = drift(before, after)
    assert moved["relative"] == pytest.approx([1.0, 2**0.5]) and moved["cosine"] == pytest.approx([1.0, 0.0])
    still = drift(before, before)
    assert still["relative"] == [0.0, 0.0] and still["cosine"] == pytest.approx([1.0, 1.0])


def test_looks_of_two_pictures_worked_by_hand() -> None:
    maps_MT = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
    weights_MT = np.array([[0.4, 0.2, 0.2, 0.2], [0.4, 0.2, 0.2, 0.2]])
    bird_MT = np.array([[1.0, 0, 0, 0], [0, 0, 0, 0.5]])
    looks = where(maps_MT, weights_MT, bird_MT)
    assert looks["mllm_on_bird"] == pytest.approx((0.7 + 0.35) / 2)
    assert looks["pooler_on_bird"] == pytest.approx((0.4 + 0.1) / 2)
    assert looks["bird_area"] == pytest.approx(1.5 / 8)
    assert looks["correlation"] == pytest.approx((1 - 1 / 3) / 2)
    assert looks["mllm_map"] == pytest.approx([0.4, 0.1, 0.1, 0.4])
    flat = where(maps_MT, np.full((2, 4), 0.1) + 0.15)
    assert flat["correlation"] is None and "mllm_on_bird" not in flat
    assert where(np.zeros((0, 4)), np.zeros((0, 4))) == {"pictures": 0}
    assert "mllm_map" not in where(np.full((1, 100), 0.01), np.full((1, 100), 0.01))


def test_cells_of_the_bird_are_where_its_attributes_change_the_picture(mllm: Path) -> None:
    config = small_run_config(mllm)
    clean = config.data.model_copy(update={"shift": 0.0})
    table, rows_N = demo_dataset(clean).validation, np.arange(6)
    cells_NT = bird_cells(table, rows_N, (4, 4))
    assert cells_NT.shape == (6, 16) and cells_NT.min() >= 0 and cells_NT.max() <= 1
    source = table.source
    assert isinstance(source, DemoSource)
    shown = table.source.load(rows_N.tolist(), 64).astype(float)
    changed = replace(table, truth_NA=(table.truth_NA + 1) % birds.NUM_VALUES)
    from saga_ray.data.demo.world import nuisance

    parameters, habitat = nuisance(source.world, source.split, rows_N)
    other = birds.draw(changed.truth_NA[rows_N], parameters, habitat, 64).astype(float)
    differs_NT = (abs(shown - other).max(axis=3) > 24).reshape(6, 4, 16, 4, 16).mean(axis=(2, 4)).reshape(6, 16)
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(cells_NT, differs_NT, strict=True)]
    assert min(correlations) > 0.8


def test_cells_of_the_bird_turn_with_the_picture(dataset: Dataset) -> None:
    table = dataset.validation
    turned = replace(table.source.world, gap="quarter-turn", shift=1.0)
    straight_NT, turned_NT = (
        bird_cells(replace(table, source=DemoSource(world, "validation")), np.arange(6), (4, 4))
        for world in (replace(turned, shift=0.0), turned)
    )
    # A clockwise quarter of the whole grid; samples fall on the edges of the drawing a little differently.
    assert np.abs(np.rot90(straight_NT.reshape(6, 4, 4), -1, (1, 2)) - turned_NT.reshape(6, 4, 4)).max() < 0.1
    assert np.abs(straight_NT - turned_NT).max() > 0.3


def test_cells_of_the_bird_are_unknown_where_the_picture_was_not_drawn(dataset: Dataset) -> None:
    table = dataset.validation
    assert bird_cells(table, np.arange(2), (4, 4)) is not None
    assert bird_cells(table, np.arange(2), (2, 3)) is None
    assert bird_cells(replace(table, source=Blank()), np.arange(2), (4, 4)) is None


# --- the whole ---


@pytest.fixture(scope="module")
def record(mllm: Path, known: Dataset, scorer: LocalScorer) -> dict:
    config = small_run_config(mllm)
    encoder = build_encoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.tower.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return diagnose(config, known, encoder, engine=scorer.engine, num_pairs=12)


def test_a_diagnosis_is_small_json_of_before_and_after(record: dict) -> None:
    assert json.loads(json.dumps(record)) == record and len(json.dumps(record)) < 4096
    for when in ("before", "after"):
        assert set(record[when]["attributes"]) == {"bill", "wing"}
        assert {"mllm_map", "pooler_map", "mllm_on_bird", "pooler_on_bird", "correlation"} <= set(record[when]["looks"])
        assert set(record["probes"][when]) == {"bill", "wing"}
    assert len(record["drift"]["relative"]) == 4 and min(record["drift"]["relative"]) > 0
    assert max(record["drift"]["cosine"]) < 1


def test_an_untrained_encoder_has_not_moved(mllm: Path, known: Dataset, scorer: LocalScorer) -> None:
    config = small_run_config(mllm)
    found = diagnose(config, known, build_encoder(config), engine=scorer.engine, num_pairs=6)
    assert found["before"] == found["after"] and found["probes"]["before"] == found["probes"]["after"]
    assert found["drift"]["relative"] == [0.0] * 4


def test_pictures_without_truth_are_diagnosed_by_verdicts_and_looks(
    mllm: Path, known: Dataset, scorer: LocalScorer
) -> None:
    config = small_run_config(mllm)
    blind = replace(known, validation=replace(known.validation, truth_NA=None, source=Blank()), attribute_names=())
    found = diagnose(config, blind, build_encoder(config), engine=scorer.engine, num_pairs=6)
    assert found["after"]["named"] is None and found["probes"] == {} and "bird_map" not in found["after"]["looks"]
    assert to_png(plots.naming_bars([("saga", found)])).startswith(b"\x89PNG")


# --- plots ---


def curve(label: str, validation: bool = True) -> CurveRun:
    lines = []
    for step in range(1, 41):
        line = {"step": step, "reward/mean": 0.5, "grpo/zero_advantage_share": 0.4, "gradient/total": 2.0}
        line |= {"gradient/metric": 1.0, "gradient/grpo": 0.1, "gradient/consensus": 0.0, "gradient/cosine": -0.1}
        if validation and step % 10 == 0:
            line |= {"validation/verdict": 0.6, "validation/naming": 0.7}
        lines.append(line)
    return CurveRun(label, lines)


def test_bars_average_the_seeds_of_a_row_and_show_before_once(record: dict) -> None:
    lifted = json.loads(json.dumps(record))
    lifted["after"]["attributes"] = {"bill": 1.0, "wing": 1.0}
    record = json.loads(json.dumps(record))
    record["after"]["attributes"] = {"bill": 0.5, "wing": 0.0}
    figure = plots.naming_bars([("saga", record), ("saga", lifted), ("control", record)])
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert (
        len(heights) == 3 and heights[1] == pytest.approx([62.5, 75, 50]) and heights[2] == pytest.approx([25, 50, 0])
    )
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["all", "bill", "wing"]


def test_a_private_code_shows_as_reward_and_verdicts_that_part() -> None:
    figure = plots.reward_and_verdicts([curve("saga"), curve("blind", validation=False), CurveRun("pretrained", [])])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["saga", "blind"]
    ends = [line.get_ydata()[-1] for line in figure.axes[0].lines]
    assert ends[-2:] == [0.6, 0.7]
    assert len(figure.legends[0].get_texts()) == 3
    figure = plots.reward_and_verdicts([curve("blind", validation=False)])
    assert len(figure.legends[0].get_texts()) == 1, "what nobody logged is not in the legend"


def test_gradients_are_those_at_the_tokens_and_cosines_stand_below() -> None:
    figure = plots.gradient_curves([curve("saga"), curve("other")])
    assert len(figure.axes) == 4 and figure.axes[0].get_yscale() == "log"
    shown = [line.get_ydata() for axes in (figure.axes[1], figure.axes[3]) for line in axes.lines]
    largest = max(abs(values).max() for values in shown)
    for axes in (figure.axes[1], figure.axes[3]):  # one scale, with room for the largest: most lie close to 0
        low, high = axes.get_ylim()
        assert -low == high == pytest.approx(max(0.1, 1.2 * largest))
    assert figure.axes[0].get_ylim() == figure.axes[2].get_ylim(), "and one for the lengths above"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["metric", "grpo", "consensus", "cosine of grpo"]


def test_looks_of_all_rows_have_one_scale(record: dict) -> None:
    other = json.loads(json.dumps(record))
    other["after"]["looks"]["pooler_map"][0] = 0.9
    figure = plots.looks_figure([("saga", record), ("control", other)])
    tops = [axes.images[0].get_clim()[1] for axes in figure.axes]
    assert tops[3:5] == tops[8:10] == [0.9, 0.9], "the pooler's"
    assert len({tops[1], tops[2], tops[6], tops[7]}) == 1, "the MLLM's"


def test_every_plot_is_drawn_also_of_nothing(record: dict) -> None:
    rows = [("saga $1$", record), ("<b>control</b>\u202e", record)]
    curves = [curve(f"run {number}") for number in range(5)]
    for plot in (plots.naming_bars, plots.probe_bars, plots.drift_bars, plots.looks_figure):
        assert to_png(plot(rows)).startswith(b"\x89PNG") and to_png(plot([])).startswith(b"\x89PNG")
    for plot in (plots.reward_and_verdicts, plots.gradient_curves, plots.zero_advantage_curves):
        assert to_png(plot(curves)).startswith(b"\x89PNG")
        assert to_png(plot([CurveRun("pretrained", [])])).startswith(b"\x89PNG")


# --- the page of class consensus ---


class Page(HTMLParser):
    """Tags, headings, pictures and text of a page."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.tags, self.headings, self.pictures, self.text, self._in_heading = [], [], [], "", False
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attributes)["src"])
        self._in_heading = tag == "h2"

    def handle_data(self, data) -> None:
        self.text += data
        if self._in_heading:
            self.headings.append(data.strip())
            self._in_heading = False


def test_wavering_is_the_share_of_other_words() -> None:
    assert wavering({"red": 3, "blue": 1}) == 0.25 and wavering({"red": 1.0}) == 0.0
    assert wavering({}) == 0.0 and wavering({"red": 0}) == 0.0


def test_the_page_puts_classes_on_which_the_mllm_wavers_first(tmp_path: Path) -> None:
    sure, torn = {"bill": {"cone": 1.0}, "leg": {"red": 1.0}}, {"bill": {"cone": 1.0}, "leg": {"red": 1, "blue": 1}}
    shares = {"sure": sure, "torn": torn, "even": sure}
    pictures = {"torn": [np.zeros((8, 8, 3), np.uint8)] * 2}
    where_it_lies = write_consensus_page(
        tmp_path,
        "Consensus",
        shares,
        taught={"torn": {"leg": "blue"}},
        truth={"torn": {"leg": "blue", "bill": "dagger"}},
        pictures=pictures,
    )
    page = Page(where_it_lies)
    assert page.headings == ["torn", "even", "sure"]
    text = (tmp_path / "consensus.html").read_text()
    torn_rows = text.split("<article")[1]
    assert torn_rows.index(">leg<") < torn_rows.index(">bill<")
    assert (
        torn_rows.count('class="taught"') == 1 and 'class="taught" style="width:50.00%" title="blue 50 %"' in torn_rows
    )
    assert torn_rows.count("word right") == 1 and torn_rows.count("word wrong") == 1
    assert page.pictures == ["consensus/0000-0.jpg", "consensus/0000-1.jpg"]
    assert all((tmp_path / each).is_file() for each in page.pictures)


def test_the_page_is_offline_and_shows_hostile_names_as_text(tmp_path: Path) -> None:
    attack = "<script>alert('x')</script>"
    shares = {f"../../{attack}": {attack: {attack: 1.0, "\u202e": 1.0}}}
    where_it_lies = write_consensus_page(
        tmp_path / "inner", attack, shares, pictures={f"../../{attack}": [np.zeros((8, 8, 3), np.uint8)]}
    )
    page, text = Page(where_it_lies), Path(where_it_lies).read_text()
    assert "script" not in page.tags and page.text.count(attack) >= 3 and "\u202e" not in text
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "") and "url(" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


def test_rare_words_are_gathered_and_a_page_of_nothing_says_so(tmp_path: Path) -> None:
    many = {f"word {number}": 10.0 - number for number in range(9)}
    text = Path(write_consensus_page(tmp_path, "C", {"owl": {"bill": many, "leg": {}}})).read_text()
    assert "3 other words" in text and "taught back" not in text and "true words" not in text
    assert "No class was described." in Path(write_consensus_page(tmp_path / "b", "C", {})).read_text()
