"""What a run asks of a cluster: processors, threads, and the group of nodes that each part prefers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from saga_ray.config import ResourcesConfig, RunConfig

GROUP_LABEL = "saga-ray.io/group"
"""Node label that keeps data, training and scoring apart; `cluster/*.yaml` set it."""
GROUPS_VARIABLE = "SAGA_RAY_NODE_GROUPS"
"""Names, with commas, of the groups that an autoscaler can add; set on a head whose groups may be empty."""


@dataclass(frozen=True)
class Bundle:
    """One indivisible piece of what is asked: it must fit on one node."""

    keys: str
    """Config keys that say its size, for messages."""
    cpus: float
    gpus: float


def bundles(configs: Sequence[RunConfig], concurrent: int = 1) -> list[Bundle]:
    """Everything that must be placed at the same time for the most demanding of `configs`, `concurrent` runs at once."""
    workers, scorers = [], []
    for config in configs:
        r = config.resources
        worker = Bundle("resources.cpus_per_worker", r.cpus_per_worker, r.gpus_per_worker)
        # Each worker decodes its own part; one task at a time is enough to go on.
        decoding = Bundle("resources.cpus_per_data_task", r.cpus_per_data_task, 0.0)
        workers.append([worker, decoding] * r.num_workers)
        if config.asks_the_mllm and config.scorer.service is None:
            scorer = Bundle("resources.cpus_per_scorer", r.cpus_per_scorer, r.gpus_per_scorer)
            scorers.append([scorer] * r.num_scorers)
    return max(workers, key=_weight, default=[]) * concurrent + max(scorers, key=_weight, default=[])


def _weight(asked: Iterable[Bundle]) -> tuple[float, float]:
    asked = list(asked)
    return sum(b.gpus for b in asked), sum(b.cpus for b in asked)


def logical_cpus(configs: Sequence[RunConfig], concurrent: int, num_cores: int) -> int:
    """CPUs that a local cluster must announce: all cores, and never fewer than the run's parts take.

    Trainer and scorer wait for each other, so a machine with fewer cores than parts loses little time and no run
    waits for ever for a CPU that does not exist.
    """
    return max(num_cores, math.ceil(_weight(bundles(configs, concurrent))[1] + 0.5))


def check_feasible(
    configs: Sequence[RunConfig],
    nodes: Sequence[Mapping[str, float]],
    where: str,
    concurrent: int = 1,
) -> None:
    """Refuse what a cluster of these nodes can never place, before anything waits for it.

    Raises:
        ValueError: naming the keys, what they ask, and what there is.
    """
    asked = bundles(configs, concurrent)
    check_fits(asked, nodes, where)
    gpus, cpus = _weight(asked)
    have_cpus, have_gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    if cpus > have_cpus or gpus > have_gpus:
        r = max((c.resources for c in configs), key=lambda r: r.num_workers * r.cpus_per_worker)
        raise ValueError(
            f"resources: the run asks for {cpus:g} CPUs and {gpus:g} GPUs at once (resources.num_workers={r.num_workers}, "
            f"resources.cpus_per_worker={r.cpus_per_worker:g}, resources.gpus_per_worker={r.gpus_per_worker:g}, "
            f"resources.num_scorers={r.num_scorers}, resources.cpus_per_scorer={r.cpus_per_scorer:g}, "
            f"resources.gpus_per_scorer={r.gpus_per_scorer:g}, resources.cpus_per_data_task={r.cpus_per_data_task:g}), "
            f"but {where} has {have_cpus:g} CPUs and {have_gpus:g} GPUs; lower these keys or join a larger cluster"
        )


def check_fits(asked: Iterable[Bundle], nodes: Sequence[Mapping[str, float]], where: str) -> None:
    """Refuse a piece that no node can hold.

    Raises:
        ValueError: naming its keys, what they ask, and the largest node.
    """
    for bundle in asked:
        if not any(node.get("CPU", 0) >= bundle.cpus and node.get("GPU", 0) >= bundle.gpus for node in nodes):
            gpu_key = bundle.keys.replace("cpus_", "gpus_")
            largest = max((f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes), default="nothing")
            raise ValueError(
                f"{bundle.keys}: {bundle.cpus:g} (with {gpu_key} {bundle.gpus:g}) fits on no node of {where}; the largest "
                f"has {largest}; lower the key or join a larger cluster"
            )


def in_one_process(resources: ResourcesConfig) -> Bundle:
    """A run of a study: a worker's CPUs, and the GPU share of worker and scorer together, at most a whole one."""
    num_gpus = min(1.0, resources.gpus_per_worker + resources.gpus_per_scorer)
    return Bundle("resources.cpus_per_worker", resources.cpus_per_worker, num_gpus)


def jobs_at_once(asked: Iterable[Bundle], num_cpus: float, num_gpus: float) -> int:
    """How many pieces like the largest have room, at least one."""
    asked = list(asked)
    pairs = ((max(b.cpus for b in asked), num_cpus), (max(b.gpus for b in asked), num_gpus)) if asked else ()
    return max(1, min((math.floor(have / need + 1e-9) for need, have in pairs if need > 0), default=1))


def max_concurrent(config: RunConfig, num_cpus: float, num_gpus: float) -> int:
    """Runs like `config` that fit beside one scorer service, at least one."""
    alone = _weight(bundles([config], 1))
    both = _weight(bundles([config], 2))
    fits = []
    for used, grown, have in ((alone[1], both[1], num_cpus), (alone[0], both[0], num_gpus)):
        per_run = grown - used
        fits.append(math.inf if per_run <= 0 else 1 + math.floor((have - used) / per_run + 1e-9))
    return max(1, int(min(fits)))


def trainer_threads(config: RunConfig, num_cores: int | None) -> int:
    """Threads of torch in one training worker.

    Args:
        num_cores: Cores of a machine that the run has for itself; None where other work runs beside it, so that it
            keeps to the CPUs it reserved.
    """
    if config.scorer.deterministic:
        return config.scorer.threads
    if num_cores is None:
        return max(1, int(config.resources.cpus_per_worker))
    return max(1, num_cores // config.resources.num_workers)


def scorer_threads(config: RunConfig, num_cores: int | None) -> int:
    """Threads of torch in one replica of the scorer."""
    if config.scorer.deterministic:
        return config.scorer.threads
    if num_cores is None:
        return max(1, int(config.resources.cpus_per_scorer))
    return max(1, num_cores // config.resources.num_scorers)


def decoding_tasks(num_cores: int | None, num_cpus: float, num_workers: int) -> int:
    """Decoding tasks at once for each of `num_workers` trainers, 1 to 8: all cores of a machine of our own, else a quarter.

    Every further one is a process, which takes seconds of a core before it decodes anything.
    """
    cores = num_cores if num_cores is not None else num_cpus / 4
    return max(1, min(8, int(cores / num_workers)))


def placement(group: str, node_labels: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Label selector of `data`, `training` or `scoring`; empty on a cluster without such groups."""
    announced = [name.strip() for name in os.environ.get(GROUPS_VARIABLE, "").split(",")]
    if group in announced or any(labels.get(GROUP_LABEL) == group for labels in node_labels):
        return {GROUP_LABEL: group}
    return {}
