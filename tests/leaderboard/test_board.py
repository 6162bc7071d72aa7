import numpy as np
import pytest
from scipy import stats

from saga_ray.leaderboard.board import leaderboard, tables
from saga_ray.leaderboard.statistics import bootstrap_means, interval95, two_sided_p
from tests.leaderboard.rows import make_result, study


def test_rows_are_means_over_seeds_ranked_by_recall() -> None:
    results = [make_result([5, 5], seed=0), make_result([9, 5], seed=4), make_result([2, 2], label="pretrained")]
    first, second = leaderboard(results, "demo")
    assert (first.label, first.rank, first.seeds, first.scores["recall@1"]) == ("saga", 1, (0, 4), 0.6)
    assert (second.label, second.rank, second.seeds, second.scores["recall@1"]) == ("pretrained", 2, (0,), 0.2)
    assert first.scores["map@r"] == pytest.approx(0.3)


def test_the_difference_is_to_the_best_baseline() -> None:
    rows = {row.label: row for row in leaderboard(study(), "demo")}
    assert rows["potential-field"].difference is None
    for label in ("saga", "pretrained"):
        difference = rows[label].difference
        assert difference.baseline == "potential-field"
        expected = rows[label].scores["recall@1"] - rows["potential-field"].scores["recall@1"]
        assert difference.mean == pytest.approx(expected)
        assert difference.interval[0] < difference.mean < difference.interval[1]
    assert rows["saga"].difference.interval[0] > 0 > rows["pretrained"].difference.interval[1]


def test_without_a_baseline_there_is_no_difference() -> None:
    (row,) = leaderboard([make_result([5, 5])], "demo")
    assert row.difference is None and row.as_json()["difference"] is None


def test_pairing_over_classes_narrows_the_interval_of_the_difference() -> None:
    rows = {row.label: row for row in leaderboard(study(), "demo")}
    low, high = rows["saga"].difference.interval
    own = [rows[label].intervals["recall@1"] for label in ("saga", "potential-field")]
    unpaired = np.hypot(*(end - start for start, end in own))
    assert high - low < 0.85 * unpaired


def test_equal_rows_differ_by_exactly_nothing() -> None:
    same = {"seed": 0}
    rows = leaderboard(
        [make_result([5, 9, 1], **same), make_result([5, 9, 1], label="potential-field", **same)], "demo"
    )
    (difference,) = [row.difference for row in rows if row.difference]
    assert difference.mean == 0 and difference.interval == (0, 0)


@pytest.mark.parametrize(
    "change", [{"fingerprint": "0" * 16}, {"protocol": "other"}, {"partial": True}, {"dataset": "cub"}]
)
def test_what_was_measured_otherwise_is_ranked_apart(change: dict[str, object]) -> None:
    rows = leaderboard([make_result([5, 5]), make_result([9, 9], label="potential-field", **change)], None)
    assert [row.rank for row in rows] == [1, 1] and len(tables(rows)) == 2
    assert all(row.difference is None for row in rows)


def test_other_query_classes_are_ranked_apart_even_under_one_fingerprint() -> None:
    rows = leaderboard([make_result([5, 5]), make_result([9, 9, 9], label="potential-field")], "demo")
    assert [row.rank for row in rows] == [1, 1] and len(tables(rows)) == 2


@pytest.mark.parametrize("change", [{"label": "saga (grpo.group_size=4)"}, {"backbone": "big"}, {"config_hash": "c1"}])
def test_what_was_tried_otherwise_is_another_row_of_the_same_table(change: dict[str, object]) -> None:
    rows = leaderboard([make_result([5, 5]), make_result([9, 9], **change)], "demo")
    assert [row.rank for row in rows] == [1, 2] and len(tables(rows)) == 1


def test_only_the_asked_split_and_data_set_are_shown() -> None:
    results = [make_result([5, 5]), make_result([6, 6], split="validation"), make_result([7, 7], dataset="cub")]
    assert [row.scores["recall@1"] for row in leaderboard(results, "demo")] == [0.5]
    assert [row.scores["recall@1"] for row in leaderboard(results, "demo", "validation")] == [0.6]
    assert leaderboard([], "demo") == []


def test_of_two_code_versions_the_later_counts_and_it_is_said() -> None:
    old = make_result([5, 5], created="2026-01-01T00:00:00Z")
    new = make_result([6, 6], created="2026-02-01T00:00:00Z", code_version="0.2.0")
    said: list[str] = []
    (row,) = leaderboard([new, old], "demo", warn=said.append)
    assert row.scores["recall@1"] == 0.6 and row.seeds == (0,) and row.code_versions == ("0.2.0",)
    assert len(said) == 1 and "0.1.0 and 0.2.0" in said[0]


def test_the_order_of_results_changes_nothing() -> None:
    results = study()
    assert leaderboard(results, "demo") == leaderboard(results[::-1], "demo")


def test_json_rows_hold_what_scripts_read() -> None:
    for row in leaderboard(study(), "demo"):
        values = row.as_json()
        names = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "nmi")
        assert all(0 <= values[name] <= 1 for name in names)
        assert {"method", "label", "seeds", "split", "fingerprint", "partial", "interval", "backbone", "dim"} <= set(
            values
        )
        assert isinstance(values["seeds"], list) and values["num_seeds"] == len(values["seeds"])
        assert values["interval"][0] < values["recall@1"] < values["interval"][1]


def test_one_class_resampled_is_always_itself() -> None:
    assert set(bootstrap_means(np.array([[3.0]]), np.array([10]), [0])) == {0.3}


def test_a_single_seed_agrees_with_scipys_bootstrap_over_classes() -> None:
    rng = np.random.default_rng(0)
    num_C = rng.integers(5, 15, size=60)
    hits_C = rng.binomial(num_C, rng.beta(2, 2, size=60)).astype(float)
    ours = interval95(bootstrap_means(hits_C[None], num_C, [0]))

    def mean(hits, num, axis):
        return hits.sum(axis=axis) / num.sum(axis=axis)

    theirs = stats.bootstrap(
        (hits_C, num_C), mean, paired=True, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.004)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.03])
def test_intervals_hold_the_truth_about_as_often_as_they_say(num_seeds: int, seed_sd: float) -> None:
    # Classes of different difficulty, correlated queries: an interval over single queries would hold it in less than half the
    # cases; seeds that differ: one over classes alone, or with resampled seeds, in 70 to 85 of 100.
    rng = np.random.default_rng(0)
    held, seeds = 0, list(range(num_seeds))
    for _ in range(200):
        share_C = rng.normal(0.5, 0.08, size=40)
        share_SC = np.clip(share_C + seed_sd * rng.standard_normal(num_seeds)[:, None], 0, 1)
        hits_SC = rng.binomial(20, share_SC).astype(float)
        low, high = interval95(bootstrap_means(hits_SC, np.full(40, 20), seeds))
        held += low <= 0.5 <= high
    assert 0.91 <= held / 200 <= (1 if num_seeds == 2 or not seed_sd else 0.99)


def test_three_equal_signs_are_no_certainty() -> None:
    """By hand: with classes all alike, t = 2 / (1 / sqrt 3) has 2 degrees of freedom."""
    differences_SC = np.array([[1.0], [2.0], [3.0]]) * np.ones(30)
    draws = bootstrap_means(differences_SC, np.full(30, 10), [0, 1, 2])
    width = stats.t.ppf(0.975, 2) / np.sqrt(3) / 10
    assert interval95(draws, least=-1.0) == pytest.approx((0.2 - width, 0.2 + width), rel=0.03)
    assert two_sided_p(draws) == pytest.approx(stats.ttest_1samp([1, 2, 3], 0).pvalue, rel=0.02)


def test_seeds_that_disagree_widen_the_interval() -> None:
    num_C = np.full(30, 10)
    calm = interval95(bootstrap_means(np.array([[5.0] * 30, [5.0] * 30, [5.0] * 30]), num_C, [0, 1, 2]))
    wild = interval95(bootstrap_means(np.array([[2.0] * 30, [5.0] * 30, [8.0] * 30]), num_C, [0, 1, 2]))
    assert calm == (0.5, 0.5) and wild[0] < 0.35 and wild[1] > 0.65


def test_many_classes_are_resampled_in_pieces_with_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from saga_ray.leaderboard import statistics

    sums_SC = np.random.default_rng(0).integers(0, 10, size=(2, 50)).astype(float)
    whole = bootstrap_means(sums_SC, np.full(50, 10), [0, 1])
    monkeypatch.setattr(statistics, "_ELEMENTS_AT_ONCE", 7 * 50)
    assert np.array_equal(whole, bootstrap_means(sums_SC, np.full(50, 10), [0, 1]))
