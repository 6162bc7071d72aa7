import re
from pathlib import Path

import pytest

from saga_ray.leaderboard.plots import CurveRun
from saga_ray.study import why
from saga_ray.study.page import write_page
from saga_ray.study.record import Record
from saga_ray.study.run import run_study
from tests.study.fakes import FakeHands, fake_record, small_study
from tests.study.test_table import Lines


def diagnosed(named: float, on_bird: float, moved: float) -> dict:
    def side(share: float, pooler: float) -> dict:
        looks = {"grid_hw": [2, 2], "mllm_map": [0.25] * 4, "pooler_map": [0.25] * 4}
        looks |= {"mllm_on_bird": 0.2, "pooler_on_bird": pooler}
        return {"attributes": {"bill": share, "wing": share}, "named": share, "well_formed": 0.8, "looks": looks}

    probes = {when: {"bill": share} for when, share in (("before", 0.5), ("after", named), ("chance", 0.25))}
    drift = {"relative": [moved, 2 * moved], "cosine": [0.9, 0.8]}
    return {"before": side(0.4, 0.1), "after": side(named, on_bird), "probes": probes, "drift": drift}


def run(label: str, **columns: list[float]) -> CurveRun:
    names = {"reward": "reward/mean", "verdict": "validation/verdict", "agree": "grpo/zero_advantage_share"}
    names |= {"metric": "gradient/metric", "grpo": "gradient/grpo", "cosine": "gradient/cosine"}
    num = len(next(iter(columns.values())))
    return CurveRun(
        label, [{"step": n} | {names[key]: values[n] for key, values in columns.items()} for n in range(num)]
    )


def test_sentences_say_what_the_pictures_show() -> None:
    looked = [
        ("saga", diagnosed(0.5, 0.2, 0.3)),
        ("saga", diagnosed(0.6, 0.4, 0.5)),
        ("pooler", diagnosed(0.4, 0.1, 1)),
    ]
    assert why.drift_words(looked) == "Level 0, relative to its length: saga 0.40, pooler 1.00."
    assert why.look_words(looked) == "The pooler's, over all seeds, in percent: saga 10.0 to 30.0, pooler 10.0 to 10.0."
    found = why.diagnosis_plots.naming_means(looked)
    assert found == pytest.approx({"before training": 0.4, "saga": 0.55, "pooler": 0.4})
    assert why.named_words(found) == "Over all attributes, in percent: before training 40.0, saga 55.0, pooler 40.0."
    assert why.naming_words(looked).endswith(
        "Answers in form, and what these alone name, in percent: before training 80 and 50.0, saga 80 and 68.8, pooler 80 and 50.0."
    )


def test_curves_are_told_by_their_ends() -> None:
    rises = run("saga", reward=[0.2, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.7, 0.9], verdict=[0.5] * 10)
    silent = CurveRun("pretrained", [])
    assert why.reward_words([rises, silent]) == (
        "First to last fifth of the steps: saga: reward 0.30 to 0.80, verdicts 0.50 to 0.50."
    )
    agree = run("saga", agree=[1.0, 0.0])
    assert (
        why.change_words([agree], "grpo/zero_advantage_share") == "First to last fifth of the steps: saga 1.00 to 0.00."
    )
    pulls = run("saga", metric=[1.0, 2.0, 9.0], grpo=[1.0, 1.0, 1.0], cosine=[0.1, 0.0, 0.2])
    assert why.gradient_words([pulls]) == (
        "Medians of lengths and means of cosines: saga: grpo 0.5 times the metric loss's, cosine 0.100."
    )
    assert why.reward_words([silent]) == why.gradient_words([silent]) == why.change_words([silent], "x") == ""


def test_the_page_has_the_pictures_with_their_sentences(tmp_path: Path) -> None:
    study, planner, records = small_study(tmp_path)

    def outcome(task) -> Record:
        record = fake_record(task, 0.6)
        curves = {"step": (1.0, 2.0), "reward/mean": (0.25, 0.5), "grpo/zero_advantage_share": (0.5, None)}
        return record.model_copy(
            update={"diagnosis": diagnosed(0.5, 0.2, 0.3), "curves": curves} if task.row == "saga" else {}
        )

    run_study(planner, records, FakeHands(1, outcome), Lines())
    where, _ = write_page(study, planner, records, "saga-ray study mine.yaml")
    page = Path(where).read_text(encoding="utf-8")
    shown = re.findall(r"!\[(\w+)-main\]", page)
    assert shown == ["scores", "naming", "probes", "drift", "looks", "rewards", "gradients", "agreement"]
    assert "before training 40.0, saga 50.0." in page and "reward 0.25 to 0.50." in page
    assert "saga 0.50 to 0.50." in page, "of what was logged"


def test_a_block_that_asks_for_it_has_pictures_of_its_encoders(tmp_path: Path) -> None:
    blocks = [
        {"name": name, "rows": ["pf", "saga"], "tuned_on": "defaults", "seeds": [seed], **more}
        for name, seed, more in (("main", 0, {}), ("silent", 1, {}), ("inside", 2, {"diagnose": ["pf"]}))
    ]
    study, planner, records = small_study(tmp_path, blocks=blocks)
    for task in planner.plan(records.get).tasks:
        records.write(fake_record(task, 0.6).model_copy(update={"diagnosis": diagnosed(0.5, 0.2, 0.3)}))
    names = [picture.name for picture in why.why_pictures(study, planner, records)]
    assert [name for name in names if name.startswith("naming")] == ["naming-main", "naming-inside"]
    assert [name for name in names if name.startswith("rewards")] == ["rewards-main"]
