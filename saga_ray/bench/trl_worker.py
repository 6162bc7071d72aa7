"""TRL's GRPOTrainer on the bench's model, in an environment of its own (`make bench-setup`): a step per line of its input.

Only the vision tower is trainable, so no gradient of the decoder's weights is taken, as in ours; images are real pixels, since
TRL takes no visual tokens. It copies each prompt G times, tower included, and its loss is over the whole vocabulary.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main() -> None:
    """Load, say so, and run a step whenever a line comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--work", type=json.loads, required=True)
    parser.add_argument("--threads", type=int, required=True)
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    with contextlib.redirect_stdout(sys.stderr):
        step, versions = _prepared(told.folder, told.work)
    print(json.dumps(versions), flush=True)
    for _ in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            found = step()
        print(json.dumps(found), flush=True)


def _prepared(folder: Path, work: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    import transformers
    import trl
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    model.requires_grad_(False)
    model.model.visual.requires_grad_(True)
    pairs, group = work["num_pairs"], work["group_size"]
    config = GRPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=group, num_generations=group,
        steps_per_generation=pairs, gradient_accumulation_steps=pairs, max_completion_length=work["answer"],
        generation_kwargs={"min_new_tokens": work["answer"], "suppress_tokens": work["banned"]}, temperature=1.0, top_p=1.0,
        top_k=0, beta=0.0, gradient_checkpointing=False, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model,
        processing_class=AutoProcessor.from_pretrained(folder, trust_remote_code=False),
        reward_funcs=lambda completions, **kwargs: [float(n % 2) for n in range(len(completions))],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["t9"] * (pairs * group)}),
    )
    rng = np.random.default_rng(0)
    side = 32 * work["grid_hw"][0]
    rows: list[dict[str, Any]] = []
    for _ in range(pairs):
        images = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(2)]
        content: list[dict[str, Any]] = []
        for text in work["texts"]:
            content += [{"type": "text", "text": text}, {"type": "image"}]
        rows += [{"prompt": [{"role": "user", "content": content[:-1]}], "images": images}] * group
    seconds: dict[str, float] = {}
    generate = trainer._generate

    def timed_generate(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        found = generate(*args, **kwargs)
        seconds["sample"] = time.perf_counter() - began
        return found

    trainer._generate = timed_generate
    trainer.current_gradient_accumulation_steps = pairs  # its loop sets it
    trainer.create_optimizer()
    trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)

    def step() -> dict[str, Any]:
        began = time.perf_counter()
        trainer._step = 0
        trainer._buffered_inputs = None
        for _ in range(pairs):
            trainer.training_step(trainer.model_wrapped, list(rows), None)
        whole = time.perf_counter() - began
        inputs = trainer._buffered_inputs[0]
        lengths = inputs["completion_mask"].sum(dim=1).tolist(), inputs["prompt_mask"].sum(dim=1).tolist()
        assert set(lengths[0]) == {work["answer"]} and set(lengths[1]) == {work["prompt"]}, lengths
        grads = [p.grad for p in model.model.visual.parameters()]
        assert all(g is not None for g in grads) and any(bool(g.any()) for g in grads), "no gradient reached the tower"
        for parameter in model.parameters():
            parameter.grad = None
        return {"step": whole, "sample": seconds["sample"], "gradient": whole - seconds["sample"]}

    return step, {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    main()
