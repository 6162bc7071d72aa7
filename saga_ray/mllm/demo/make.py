"""Make the demo MLLM from nothing: `python -m saga_ray.mllm.demo.make`.

Four stages, each resumed where it ended: the tower learns from captions and names; the language model practises comparing
words; both learn to describe and compare pictures; the language model alone does so more gently, until its answers keep
their form at temperature 1. All pictures are fresh and clean, of birds of the MLLM's half.
"""

import functools
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from saga_ray.mllm.demo import talking, tower
from saga_ray.mllm.demo.folder import WEIGHTS, save_folder
from saga_ray.mllm.demo.training import StagePlan, load_learner, read_about, run_stage

PLANS = {
    "tower": StagePlan("tower", num_steps=1800, lr=2.5e-3),
    "practice": StagePlan("practice", num_steps=400, lr=2e-3),
    "pairs": StagePlan("pairs", num_steps=800, lr=1e-3),
    "polish": StagePlan("polish", num_steps=600, lr=4e-4),
}
BATCH = {"tower": 128, "practice": 64, "pairs": 48, "polish": 48}
"""Pictures, then pairs, of a step."""


def stage_parts(stage: str, learner: talking.Learner, batch: int, fast: bool):
    """What a stage trains (with factors on its learning rate) and its loss; `fast` takes products in bfloat16."""
    model = learner.model

    def tower_loss(rng: np.random.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        attributes = tower.neighbour_vectors(rng, batch)
        images, parts = tower.training_pictures(rng, attributes)
        with tower.half_precision(fast, learner.device):
            levels = tower.tower_levels(model.model.visual, images, deepstack=False)
        told = torch.from_numpy(attributes).to(learner.device)
        return tower.caption_loss(learner.teacher, levels[0], told, parts.to(learner.device))

    visual, language = model.model.visual, model.model.language_model
    deepstack = list(visual.deepstack_merger_list.parameters())
    rest = [p for name, p in visual.named_parameters() if not name.startswith("deepstack_merger_list")]
    teacher = list(learner.teacher.parameters())
    if stage == "tower":
        return [(rest + teacher, 1.0)], tower_loss
    if stage == "practice":
        parameters = [*language.parameters(), *learner.probe.parameters()]
        return [(parameters, 1.0)], lambda rng, step: talking.practice_loss(learner, rng, batch, fast=fast)
    if stage == "polish":
        polish = functools.partial(talking.pairs_loss, learner, num_pairs=batch, teach_tower=False, fast=fast)
        return [(list(language.parameters()), 1.0)], lambda rng, step: polish(rng)
    groups = [([*language.parameters(), *deepstack, *learner.comparer.parameters()], 1.0), (rest + teacher, 0.5)]
    return groups, lambda rng, step: talking.pairs_loss(learner, rng, batch, fast=fast)


def make(
    out: Path,
    seed: int,
    stages: list[str],
    scale: float,
    batch_scale: float = 1.0,
    fast: bool = False,
    device: str = "cpu",
) -> talking.Learner:
    """Run stages in `out`; what is finished is only loaded.

    Args:
        out: folder of the stages' checkpoints.
        seed: of first weights and of all pictures.
        stages: which of `PLANS`, in order.
        scale: factor on the number of steps.
        batch_scale: factor on the batches; small ones are for tests.
        fast: products in bfloat16.
        device: where the arithmetic is done; first weights and pictures are drawn on the CPU and do not depend on it.
    """
    learner = talking.Learner(seed).to(device)
    for stage in stages:
        plan = replace(PLANS[stage], num_steps=max(1, round(PLANS[stage].num_steps * scale)))
        begin_stage(stage, learner, out)
        batch = max(8, round(BATCH[stage] * batch_scale) // 4 * 4)
        groups, loss = stage_parts(stage, learner, batch, fast)
        run_stage(plan, learner, groups, loss, out, seed)
    return learner


FROM = {
    "pairs": {"tower": ("model.model.visual", "teacher"), "practice": ("model.model.language", "probe")},
    "polish": {"pairs": ("model",)},
}
"""What a stage takes from the ones before: from whose checkpoint the parameters with which prefixes."""


def begin_stage(stage: str, learner: talking.Learner, out: Path) -> None:
    """Load what a stage builds on; `pairs` brings together the tower of one stage and the language model of another."""
    for before, prefixes in FROM.get(stage, {}).items():
        weights = out / f"{before}.safetensors"
        if not weights.exists():
            raise ValueError(f"{weights}: missing; the stage `{before}` comes before `{stage}`")
        about = read_about(weights)
        if about["step"] < about["num_steps"]:
            raise ValueError(
                f"{weights}: stage `{before}` is at step {about['step']} of {about['num_steps']}; let it end first"
            )
        for prefix in prefixes:
            load_learner(learner, load_file(weights), prefix)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("runs/demo-mllm"), help="Checkpoints of the stages."
)
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS, help="Folder of the finished model.")
@click.option("--seed", type=int, default=0)
@click.option(
    "--stage", "stages", type=click.Choice(list(PLANS)), multiple=True, help="Only these stages; default: all."
)
@click.option("--scale", type=float, default=1.0, help="Factor on the number of steps.")
@click.option("--batch-scale", type=float, default=1.0, help="Factor on the batches.")
@click.option("--threads", type=int, default=2)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--fast/--exact", default=None, help="Products in bfloat16; default: if the processor has units for them."
)
def main(
    work: Path,
    out: Path,
    seed: int,
    stages: tuple[str, ...],
    scale: float,
    batch_scale: float,
    threads: int,
    device: str,
    fast: bool | None,
) -> None:
    """Make the demo MLLM; typed again it goes on where it ended."""
    torch.set_num_threads(threads)
    chosen = list(stages) or list(PLANS)
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: torch sees no GPU here; leave the option out")
    if fast is None:
        fast = device == "cpu" and torch.cpu._is_amx_tile_supported()
    learner = make(work, seed, chosen, scale, batch_scale, fast, device)
    if "polish" in chosen:
        save_folder(learner.model, out)
        click.echo(f"{out}: written; `python -m saga_ray.mllm.demo.check` measures it", err=True)


if __name__ == "__main__":
    main()
