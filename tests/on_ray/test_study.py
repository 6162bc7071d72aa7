"""Tasks of a study on Ray."""

from pathlib import Path

import pytest

from saga_ray.config import ResourcesConfig, RunConfig
from saga_ray.on_ray.cluster import Cluster
from saga_ray.on_ray.study import RayHands, demands, jobs_at_once, ray_hands
from saga_ray.study.plan import Task
from saga_ray.study.work import do_task


def _task(config: RunConfig) -> Task:
    return Task("saga-home-paper-seed0-0", "final", "saga", "home", "paper", 0, {}, config, "data", "weights", False)


def test_a_run_asks_for_one_gpu_at_most_since_it_is_one_process() -> None:
    assert demands(ResourcesConfig()) == {"num_cpus": 1.0, "num_gpus": 0.0}
    shared = ResourcesConfig(cpus_per_worker=4, gpus_per_worker=0.25, gpus_per_scorer=0.25)
    assert demands(shared) == {"num_cpus": 4.0, "num_gpus": 0.5}
    assert demands(ResourcesConfig(gpus_per_worker=1, gpus_per_scorer=1))["num_gpus"] == 1.0


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_on_ray_measures_what_it_measures_here(small_config: RunConfig, tmp_path: Path) -> None:
    hands = RayHands(Cluster(started=False, num_cores=None), 1, str(tmp_path / "ray"), keep_runs=False)
    task = _task(small_config)
    hands.start(task)
    ((ended, there),) = hands.ended()
    here = do_task(task, str(tmp_path / "here"))
    assert ended is task and there.status == here.status == "finished"
    assert there.scores == here.scores and there.scorer_tokens == here.scorer_tokens > 0


def test_as_many_jobs_as_the_largest_run_has_room() -> None:
    wide, on_gpu = ResourcesConfig(cpus_per_worker=4), ResourcesConfig(gpus_per_worker=0.5)
    assert jobs_at_once([ResourcesConfig()], 16, 0) == 16
    assert jobs_at_once([ResourcesConfig(), wide], 16, 0) == 4
    assert jobs_at_once([wide, on_gpu], 16, 1) == 2
    assert jobs_at_once([on_gpu], 16, 0) == 0


@pytest.mark.usefixtures("ray_cluster")
def test_runs_that_no_node_can_hold_are_refused_with_what_to_do(tmp_path: Path) -> None:
    greedy = [ResourcesConfig(gpus_per_worker=1)]
    told = r"asks for 1 CPUs and 1 GPUs, the Ray cluster has 6 and 0; join a larger one"
    with pytest.raises(ValueError, match=told), ray_hands(None, str(tmp_path), False, greedy):
        pass
