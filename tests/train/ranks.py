"""What every rank of `test_ranks` does; in a module of its own, so that spawned processes can import it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as distributed
from safetensors.torch import save_file

from saga_ray.config import RunConfig
from saga_ray.configure import from_yaml
from saga_ray.data import load_dataset
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.data.planning.stream import micro_batches
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.storage import Storage
from saga_ray.train.context import RunContext, TorchContext
from saga_ray.train.loop import train
from saga_ray.train.run_folder import RunFolder
from saga_ray.train.step import accumulate_gradients
from saga_ray.types import MicroBatch, Scorer
from tests.train.small import small_model, stream


def main(rank: int, world_size: int, config_text: str, folder: str) -> None:
    """One rank of a gloo group."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting-{world_size}", rank=rank, world_size=world_size)
    try:
        config = from_yaml(config_text, "config")
        work(config, TorchContext(torch.device("cpu")), Path(folder) / f"of{world_size}", local_scorer(config))
    finally:
        distributed.destroy_process_group()


def local_scorer(config: RunConfig) -> LocalScorer | None:
    """The real scorer, if the method asks it."""
    return LocalScorer(build_engine(config)) if config.asks_the_mllm else None


def work(config: RunConfig, context: RunContext, folder: Path, scorer: Scorer | None) -> None:
    """Gradients of the first step, then a whole run; rank 0 writes both."""
    dataset = load_dataset(config)
    model = small_model(config, dataset)
    first = stream(config, dataset, rank=context.rank, world_size=context.world_size)
    report = accumulate_gradients(model, first, scorer, config, context, step=1)
    if context.rank == 0:
        folder.mkdir(parents=True)
        save_file({name: parameter.grad for name, parameter in model.trainable()}, folder / "gradients.safetensors")
    assert not config.asks_the_mllm or report.metrics["grpo/contributing_pairs"] > 2

    def batches(start: int, stop: int, planner: PairPlanner) -> Iterator[MicroBatch]:
        return micro_batches(
            dataset.train, planner, config.data, config.seed, start, stop, context.rank, context.world_size
        )

    result = train(config, dataset, scorer, context, batches, RunFolder(Storage.open(folder), "run"))
    assert (result is not None) == (context.rank == 0)
