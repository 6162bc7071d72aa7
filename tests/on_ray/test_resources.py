"""What runs ask of a cluster."""

import pytest

from saga_ray.config import RunConfig
from saga_ray.configure import resolve
from saga_ray.on_ray.resources import (
    GROUP_LABEL,
    GROUPS_VARIABLE,
    Bundle,
    bundles,
    check_feasible,
    decoding_tasks,
    in_one_process,
    jobs_at_once,
    logical_cpus,
    max_concurrent,
    placement,
    scorer_threads,
    trainer_threads,
)


def _config(**resources: float) -> RunConfig:
    return resolve("demo", overrides={f"resources.{key}": value for key, value in resources.items()})


def test_a_machine_with_one_core_announces_what_the_run_needs() -> None:
    config = _config()
    asked = sum(bundle.cpus for bundle in bundles([config]))
    assert asked == 1.0 + 0.25 + 0.5
    assert logical_cpus([config], 1, num_cores=1) >= asked
    assert logical_cpus([config], 1, num_cores=64) == 64


def test_several_rows_share_one_service_and_one_group_of_workers() -> None:
    saga, baseline = _config(num_scorers=2), resolve("demo", method="potential-field")
    assert sum(b.cpus for b in bundles([baseline])) == 1.25
    assert bundles([saga, baseline]) == bundles([saga])
    assert sum(b.cpus for b in bundles([saga], concurrent=3)) == 3 * 1.25 + 2 * 0.5


def test_trials_at_once_always_leave_room_for_the_scorer() -> None:
    config = _config()
    for num_cpus in (1, 2, 3, 4, 16):
        count = max_concurrent(config, num_cpus, 0)
        needed = sum(b.cpus for b in bundles([config], concurrent=count))
        more = sum(b.cpus for b in bundles([config], concurrent=count + 1))
        assert more > num_cpus and (needed <= num_cpus or count == 1)
    on_gpus = _config(gpus_per_worker=1, gpus_per_scorer=1)
    assert max_concurrent(on_gpus, 64, 4) == 3


def test_a_cluster_that_fits_is_not_refused_and_one_that_does_not_is() -> None:
    config = _config(num_workers=2, gpus_per_worker=1)
    check_feasible([config], [{"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}], "it")
    with pytest.raises(ValueError, match=r"2 GPUs at once \(resources\.num_workers=2"):
        check_feasible([config], [{"CPU": 8, "GPU": 1}], "it")
    with pytest.raises(ValueError, match=r"resources\.cpus_per_worker: 1 \(with resources\.gpus_per_worker 1\)"):
        check_feasible([config], [{"CPU": 8}], "it")


def test_a_run_of_a_study_asks_for_one_gpu_at_most_since_it_is_one_process() -> None:
    assert in_one_process(_config().resources) == Bundle("resources.cpus_per_worker", 1.0, 0.0)
    shared = in_one_process(_config(cpus_per_worker=4, gpus_per_worker=0.25, gpus_per_scorer=0.25).resources)
    assert (shared.cpus, shared.gpus) == (4.0, 0.5)
    assert in_one_process(_config(gpus_per_worker=1, gpus_per_scorer=1).resources).gpus == 1.0


def test_as_many_jobs_as_the_largest_has_room() -> None:
    small, wide, on_gpu = Bundle("", 1.0, 0.0), Bundle("", 4.0, 0.0), Bundle("", 1.0, 0.5)
    assert jobs_at_once([small], 16, 0) == 16
    assert jobs_at_once([small, wide], 16, 0) == 4
    assert jobs_at_once([wide, on_gpu], 16, 1) == 2
    assert jobs_at_once([on_gpu], 16, 0) == jobs_at_once([], 16, 0) == 1


def test_deterministic_runs_use_the_same_threads_everywhere() -> None:
    config = resolve("demo", overrides={"scorer.deterministic": True, "scorer.threads": 3})
    for num_cores in (None, 1, 64):
        assert trainer_threads(config, num_cores) == scorer_threads(config, num_cores) == 3


def test_other_runs_use_a_machine_of_their_own_and_keep_to_their_share_elsewhere() -> None:
    config = _config(num_workers=2, cpus_per_worker=4, num_scorers=4)
    assert (trainer_threads(config, 16), scorer_threads(config, 16)) == (8, 4)
    assert (trainer_threads(config, None), scorer_threads(config, None)) == (4, 1)
    assert decoding_tasks(2, 4, 1) == 2 and decoding_tasks(None, 64, 4) == 4 and decoding_tasks(None, 1, 4) == 1


def test_groups_are_used_where_they_exist_or_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GROUPS_VARIABLE, raising=False)
    assert placement("scoring", [{}, {"ray.io/region": "x"}]) == {}
    assert placement("scoring", [{GROUP_LABEL: "scoring"}]) == {GROUP_LABEL: "scoring"}
    monkeypatch.setenv(GROUPS_VARIABLE, "data, training")
    assert placement("training", [{}]) == {GROUP_LABEL: "training"} and placement("scoring", [{}]) == {}
