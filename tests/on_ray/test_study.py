"""Tasks of a study on Ray."""

from pathlib import Path

import pytest

from saga_ray.config import ResourcesConfig, RunConfig
from saga_ray.on_ray.cluster import Cluster
from saga_ray.on_ray.study import RayHands, ray_hands
from saga_ray.study.plan import Task
from saga_ray.study.work import do_task


def _task(config: RunConfig) -> Task:
    return Task("saga-home-paper-seed0-0", "final", "saga", "home", "paper", 0, {}, config, "data", "weights", False)


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_on_ray_measures_what_it_measures_here(small_config: RunConfig, tmp_path: Path) -> None:
    hands = RayHands(Cluster(started=False, num_cores=None), 1, str(tmp_path / "ray"), keep_runs=False)
    task = _task(small_config)
    hands.start(task)
    ((ended, there),) = hands.ended(300)
    here = do_task(task, str(tmp_path / "here"))
    assert ended is task and there.status == here.status == "finished"
    assert there.scores == here.scores and there.scorer_tokens == here.scorer_tokens > 0


@pytest.mark.usefixtures("ray_cluster")
def test_runs_that_no_node_can_hold_are_refused_with_what_to_do(tmp_path: Path) -> None:
    greedy = [ResourcesConfig(gpus_per_worker=1)]
    told = r"resources\.cpus_per_worker: 1 \(with resources\.gpus_per_worker 1\) fits on no node of the Ray cluster"
    with pytest.raises(ValueError, match=told), ray_hands(None, str(tmp_path), False, greedy):
        pass
