"""The training loop: plan, steps, updates, checkpoints, evaluation; the same function in one process and on Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saga_ray.config import RunConfig
from saga_ray.data.planning.mining import snapshot_rows
from saga_ray.data.planning.plan import PairPlanner
from saga_ray.data.planning.taxonomy import relatives
from saga_ray.encoder.encoder import Encoder, build_encoder
from saga_ray.scorer.determinism import deterministic
from saga_ray.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from saga_ray.train.completions import Row, completion_rows
from saga_ray.train.consensus import Consensus
from saga_ray.train.context import RunContext
from saga_ray.train.embed import embed_centroids
from saga_ray.train.errors import check_finite
from saga_ray.train.evaluate import evaluate, weights_id
from saga_ray.train.generations import Generations
from saga_ray.train.logs import RunLog
from saga_ray.train.losses import build_metric_loss
from saga_ray.train.optim import (
    build_optimizer,
    freeze_unreached,
    freeze_untrained,
    learning_rate_factor,
    num_steps,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rates,
    unreached_sentence,
)
from saga_ray.train.progress import Progress, Silent
from saga_ray.train.run_folder import RunFolder, process_name
from saga_ray.train.step import Model, StepReport, accumulate_gradients
from saga_ray.types import Dataset, MicroBatch, Scorer

logger = logging.getLogger(__name__)

Batches = Callable[[int, int, PairPlanner], Iterator[MicroBatch]]
"""(start, stop, planner) to this rank's rows of micro-batches start .. stop - 1, in order."""


@dataclass(frozen=True)
class TrainResult:
    """What became of a run."""

    name: str
    uri: str
    num_steps: int
    scores: Mapping[str, float]
    """`recall@1`, ..., `map@r`, `nmi`."""
    row: Mapping[str, Any]
    """What result.json holds."""
    stored: str
    """`added`, `identical` or `conflict`: what the store of results did with the row; `finished` if nothing was done."""

    @property
    def was_finished(self) -> bool:
        """True if the run had ended before, and nothing was done now."""
        return self.stored == "finished"


def finished_result(run: RunFolder, config: RunConfig) -> TrainResult | None:
    """The result of a run that ended before; None if it has to be trained.

    Raises:
        ValueError: if the run's name belongs to another configuration.
    """
    if run.state(config) != "finished":
        return None
    row = run.read_result()
    return TrainResult(run.name, run.storage.uri, row["num_steps"], row["scores"], row, "finished")


def train(
    config: RunConfig,
    dataset: Dataset,
    scorer: Scorer | None,
    context: RunContext,
    batches: Batches,
    run: RunFolder,
    progress: Progress | None = None,
) -> TrainResult | None:
    """Train and evaluate one run; every rank calls it. Goes on from the run's last checkpoint, if there is one.

    Args:
        scorer: None for methods that do not ask the MLLM.
        batches: this rank's stream of micro-batches.

    Returns:
        The result, on rank 0; None on the others.

    Raises:
        ValueError: for what the configuration cannot mean; NonFiniteError before an update that would spoil the weights.
    """
    progress = progress if progress is not None and context.rank == 0 else Silent()
    finished = finished_result(run, config)
    # Rank 0 writes into the folder that the others look at: nobody goes on before everybody has looked.
    if all(context.gather(finished is not None)):
        return finished if context.rank == 0 else None
    assert (scorer is not None) == config.asks_the_mllm, "a scorer is needed exactly if the MLLM is asked"
    with deterministic(config):
        began = time.perf_counter()
        progress.stage("loading the encoder")
        encoder = build_encoder(config).to(context.device)
        pretraining = weights_id(encoder, config) if context.rank == 0 else ""
        freeze_untrained(encoder, config)
        steps = num_steps(config, len(dataset.train))
        trainer = None
        if steps > 0:
            trainer = Trainer(config, dataset, scorer, context, run, progress, encoder, steps)
        # Only now: what a user did wrong has been said by then, and nothing is half written.
        if context.rank == 0:
            run.runs.check_writable()
            run.begin(config)
        elapsed = trainer.run_steps(batches) if trainer is not None else 0.0
        progress.stage(f"embedding {len(dataset.split(config.evaluation.split))} {config.evaluation.split} images")
        seconds = elapsed if steps > 0 else time.perf_counter() - began
        found = evaluate(
            encoder, config, dataset, context, run, pretraining=pretraining, seconds=seconds, on_images=progress.part
        )
        if found is None:
            return None
        result, stored = found
        if trainer is not None and trainer.consensus is not None:
            trainer.consensus.write_page(run.storage)
        row = result.model_dump(mode="json") | {"num_steps": steps, "stored": stored}
        run.write_result(row)
        return TrainResult(run.name, run.storage.uri, steps, result.scores, row, stored)


class Trainer:
    """A run between its first and its last step: networks, optimiser, plan, and where the run stands."""

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        scorer: Scorer | None,
        context: RunContext,
        run: RunFolder,
        progress: Progress,
        encoder: Encoder,
        num_steps: int,
    ) -> None:
        self.config, self.dataset, self.scorer, self.context = config, dataset, scorer, context
        self.run, self.progress, self.num_steps = run, progress, num_steps
        self.generations = Generations(config, num_steps)
        checkpoint = _agreed_checkpoint(run, context)
        self.step = checkpoint.step if checkpoint else 0
        self.position = checkpoint.state["position"] if checkpoint else 0
        """Next micro-batch of the plan."""
        self.seconds = checkpoint.state["seconds"] if checkpoint else 0.0
        # A checkpoint between two generations holds what the earlier one left.
        begun = self.generations.config_at(max(self.step - 1, 0))
        metric_loss = self._metric_loss(encoder, begun)
        self._freeze_unreached(encoder, metric_loss, begun)
        self.model = Model(encoder, metric_loss, self._reference())
        if not self.model.trainable():
            raise ValueError(
                f"loss.metric: {config.loss.metric} with loss.weights.metric={config.loss.weights.metric:g}, "
                f"loss.weights.grpo={config.loss.weights.grpo:g}, loss.weights.alignment={config.loss.weights.alignment:g}, "
                f"loss.weights.reference_kl={config.loss.weights.reference_kl:g}, loss.weights.consensus={config.loss.weights.consensus:g}, "
                f"loss.weights.anchor={config.loss.weights.anchor:g} "
                f"and encoder.trainable={config.encoder.trainable} leaves nothing to learn; choose a loss, or optim.steps=0"
            )
        self.snapshot_CE = self._mining_snapshot(encoder, checkpoint)
        self.planner = PairPlanner(
            dataset.train.labels_N,
            config.data,
            config.seed,
            self.snapshot_CE,
            relatives(config.data, dataset.train.class_names),
        )
        self.optimizer = build_optimizer(encoder, metric_loss, begun.optim)
        self.consensus = self._consensus(checkpoint)
        if self.step == 0 and begun.loss.weights.consensus > 0:
            self._read_classes()
        self.watch = self._watch()
        self._verdict_key = self._stored_verdict_key()
        if checkpoint is not None:
            self._restore(checkpoint)

    def run_steps(self, batches: Batches) -> float:
        """Train to the last step; returns the seconds that all steps of the run took, earlier sessions included."""
        config = self.config
        furthest = self.position + (self.num_steps - self.step) * config.grpo.max_micro_batches
        stream = batches(self.position, furthest, self.planner)
        log = None
        if self.context.rank == 0:
            log = RunLog(self.run.storage, self.step, self.num_steps, store_answers=self._verdict_key is not None)
        self.progress.stage(f"training from step {self.step}" if self.step else "training")
        try:
            while self.step < self.num_steps:
                if self.generations.ends_at(self.step):
                    self._next_generation()
                self._one_step(stream, log)
                is_due = self.step % config.checkpoint.every_steps == 0 or self.step == self.num_steps
                if is_due or self.generations.ends_at(self.step):
                    self._save(log)
        finally:
            if log is not None:
                log.close()
            close = getattr(stream, "close", None)
            if close is not None:
                close()
        return self.seconds

    def _one_step(self, stream: Iterator[MicroBatch], log: RunLog | None) -> None:
        began = time.perf_counter()
        number, start = self.step + 1, self.generations.start(self.step)
        config = self.generations.config_at(self.step)
        scorer, consensus = (self.scorer, self.consensus) if config.learns_from_the_mllm else (None, None)
        report = accumulate_gradients(self.model, stream, scorer, config, self.context, number, consensus)
        updating = time.perf_counter()
        metrics = report.metrics
        parameters = [parameter for _, parameter in self.model.trainable()]
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm)
        metrics["gradient/total"] = float(norm)
        check_finite("gradient/total", metrics["gradient/total"], number)
        # As if this generation went on to the end: only the last one comes to rest.
        factor = learning_rate_factor(self.step - start, self.num_steps - start, config.optim.warmup_share)
        metrics |= set_learning_rates(self.optimizer, factor)
        self.optimizer.step()
        self.step = number
        self.position += report.num_micro_batches
        if consensus is not None:
            consensus.end_step(number)
            metrics["scorer/tokens"] += consensus.tokens_read
            consensus.tokens_read = 0
        metrics["seconds/update"] = time.perf_counter() - updating
        seconds = time.perf_counter() - began
        self.seconds += seconds
        metrics = {
            "step": number,
            "seconds": seconds,
            "seconds/elapsed": self.seconds,
            **metrics,
            "trainer/process": process_name(),
        }
        metrics.setdefault("scorer/process", "")
        if self.watch is not None and (number % config.evaluation.watch_steps == 0 or number == self.num_steps):
            metrics |= self.watch(self.model.encoder)
        stored = self._completions(number, report)
        if log is not None:
            log.step(metrics)
            log.completions.add(number, stored)
        self.context.report(metrics)
        self.progress.step(number, self.num_steps, metrics)

    def _completions(self, step: int, report: StepReport) -> list[Row]:
        """What the MLLM said in a step: of this rank, for a sample; of all ranks, if everything is stored."""
        if self._verdict_key is None:
            return completion_rows(step, report, self.dataset.train)
        rows = completion_rows(step, report, self.dataset.train, self._verdict_key)
        everyone = [row for rank in self.context.gather(rows) for row in rank]
        return sorted(everyone, key=lambda row: (row["micro_batch"], row["pair"]))

    def _stored_verdict_key(self) -> str | None:
        """Under which answers give their verdict, if every answer is stored."""
        if not (self.config.scorer.store_answers and self.config.samples_answers):
            return None
        from saga_ray.scorer.prompt import run_prompt

        return run_prompt(self.config).verdict_key

    def _save(self, log: RunLog | None) -> None:
        if log is None:
            return
        log.sync()
        tensors: dict[str, dict[str, Tensor]] = {
            "encoder": dict(self.model.encoder.state_dict()),
            "optimizer": optimizer_tensors(self.model.trainable(), self.optimizer),
        }
        if self.model.metric_loss is not None and self.model.metric_loss.state_dict():
            tensors["metric_loss"] = dict(self.model.metric_loss.state_dict())
        if self.snapshot_CE is not None:
            tensors["snapshot"] = {"class_centroids": torch.from_numpy(self.snapshot_CE)}
        state: dict[str, Any] = {"position": self.position, "seconds": self.seconds}
        if self.consensus is not None and self.consensus.shares:
            state["consensus"] = self.consensus.state()
        save_checkpoint(self.run.storage, Checkpoint(self.step, tensors, state), self.config.checkpoint.keep)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.model.encoder.load_state_dict(dict(checkpoint.tensors["encoder"]))
        if "metric_loss" in checkpoint.tensors and self.model.metric_loss is not None:
            self.model.metric_loss.load_state_dict(dict(checkpoint.tensors["metric_loss"]))
        restore_optimizer(self.model.trainable(), self.optimizer, checkpoint.tensors["optimizer"])

    def _reference(self) -> Encoder | None:
        """The initial encoder once more, if a loss compares with it."""
        if not self.config.needs_reference:
            return None
        return build_encoder(self.config).to(self.context.device).requires_grad_(False)

    def _consensus(self, checkpoint: Checkpoint | None) -> Consensus | None:
        """What is taught of the classes; nothing yet, or what was taught at the checkpoint."""
        if self.config.loss.weights.consensus == 0:
            return None
        from saga_ray.scorer.prompt import run_prompt

        assert self.scorer is not None
        consensus = Consensus(self.config, self.dataset, run_prompt(self.config), self.scorer, self.context)
        if checkpoint is not None and "consensus" in checkpoint.state:
            consensus.restore(checkpoint.state["consensus"])
        return consensus

    def _next_generation(self) -> None:
        """Let the MLLM read through the encoder as it is now, then begin again from the initial weights."""
        self._read_classes()
        encoder, config = self.model.encoder, self.generations.config_at(self.step)
        initial = build_encoder(config)
        freeze_untrained(initial, config)
        encoder.load_state_dict(initial.state_dict())
        for ours, fresh in zip(encoder.parameters(), initial.parameters(), strict=True):
            ours.requires_grad_(fresh.requires_grad)  # the last generation may have reached less
        metric_loss = self._metric_loss(encoder, config)
        self._freeze_unreached(encoder, metric_loss, config)
        self.model = Model(encoder, metric_loss, self.model.reference)
        self.optimizer = build_optimizer(encoder, self.model.metric_loss, config.optim)
        self.progress.stage(f"training anew from step {self.step}, with what was read")

    def _metric_loss(self, encoder: Encoder, config: RunConfig) -> nn.Module | None:
        num_classes = len(self.dataset.train.class_names)
        metric_loss = build_metric_loss(config.loss, num_classes, _width(encoder), config.seed)
        return None if metric_loss is None else metric_loss.to(self.context.device, encoder.tower.dtype)

    def _read_classes(self) -> None:
        """The MLLM reads some pictures of every class through the encoder as it is now."""
        assert self.consensus is not None
        self.progress.stage(f"reading images of {len(self.dataset.train.class_names)} training classes")
        began = time.perf_counter()
        self.consensus.begin(self.model.encoder, self.progress.part)
        self.seconds += time.perf_counter() - began

    def _watch(self) -> Callable[[Encoder], dict[str, float]] | None:
        """From the encoder to what the MLLM says of validation classes through it; on rank 0, if it is asked for."""
        if self.config.evaluation.watch_steps == 0 or self.scorer is None or self.context.rank:
            return None
        from saga_ray.scorer.prompt import run_prompt
        from saga_ray.train.naming import validation_metrics, validation_questions

        questions, prompt = validation_questions(self.config, self.dataset), run_prompt(self.config)
        return lambda encoder: validation_metrics(encoder, self.scorer, questions, prompt)

    def _mining_snapshot(self, encoder: Encoder, checkpoint: Checkpoint | None) -> np.ndarray | None:
        """Class centroids in the initial encoder, for the plan's hard shards; from the checkpoint if there is one."""
        table, config = self.dataset.train, self.config
        if config.data.hard_share == 0 or config.data.hard_from != "embeddings":
            return None
        if checkpoint is not None:
            return checkpoint.tensors["snapshot"]["class_centroids"].numpy()
        rows_N = snapshot_rows(table.labels_N, config.data.mining_images, config.seed)
        self.progress.stage(f"embedding {len(rows_N)} training images to find neighbouring classes")
        size, chunk = config.data.image_size, config.evaluation.batch_size
        return embed_centroids(encoder, table, rows_N, size, chunk, self.context, self.progress.part)

    def _freeze_unreached(self, encoder: Encoder, metric_loss: nn.Module | None, config: RunConfig) -> None:
        """Of what a generation learns from."""
        size = self.config.data.image_size
        images_NHWC = torch.randint(0, 256, (2, size, size, 3), generator=torch.Generator().manual_seed(0))
        images_NHWC = images_NHWC.to(self.context.device, torch.uint8)
        asked = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        names = freeze_unreached(encoder, images_NHWC, config.loss.weights, metric_loss is not None)
        chosen = self.config.encoder.trainable
        sentence = unreached_sentence(chosen, asked, names)
        if sentence is not None and self.context.rank == 0:
            # Of a whole tower some parts often have no gradient (DeepStack's mergers without GRPO); whoever names parts means them.
            logger.log(logging.INFO if chosen == "all" else logging.WARNING, "%s", sentence)


def _agreed_checkpoint(run: RunFolder, context: RunContext) -> Checkpoint | None:
    """The newest whole checkpoint; all ranks must see the same one."""
    checkpoint = load_checkpoint(run.storage)
    steps = context.gather(checkpoint.step if checkpoint else 0)
    if len(set(steps)) > 1:
        raise ValueError(
            f"--runs {run.runs.uri}: workers see different checkpoints (steps {steps}); use storage that all nodes share"
        )
    return checkpoint


def _width(encoder: Encoder) -> int:
    return getattr(getattr(encoder.pooler, "projection", None), "out_features", None) or encoder.tower.width
