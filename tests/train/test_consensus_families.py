"""One round of the class consensus with every family: answers are tallied, and taught back."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import transformers.models.smolvlm.processing_smolvlm as smolvlm_processing
import yaml

from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.train.consensus import Consensus
from saga_ray.train.context import LocalContext
from saga_ray.types import Dataset, ScoreOptions, ScoreRequest
from tests.helpers.small_families import SMALL_FAMILIES, small_family_folder
from tests.helpers.small_mllm import small_answer
from tests.train.small import small_model, small_run_config, stream

CPU = LocalContext(torch.device("cpu"))
VOCABULARY = {
    "role": "watcher",
    "item": "bird",
    "verdict_key": "same",
    "attributes": {"bill": ["hooked", "straight"], "wing": None},
}
WRITTEN = [
    small_answer(*words) for words in product(("hooked", "straight"), ("barred", " "), ("hooked",), ("plain",), ("no",))
]


@pytest.mark.parametrize("name", SMALL_FAMILIES)
def test_what_is_written_of_classes_is_tallied_and_taught_back(
    name: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smolvlm_processing, "num2words", str)
    folder, words = small_family_folder(tmp_path / name, name), tmp_path / "words.yaml"
    words.write_text(yaml.safe_dump(VOCABULARY))
    config = small_run_config(folder, "saga+consensus", prompt__vocabulary=str(words), prompt__value_tokens=2)
    whole = build_engine(config)
    batch = next(stream(config, dataset))
    with torch.no_grad():
        tokens = small_model(config, dataset).encoder.encode_tokens(torch.from_numpy(batch.images_NHWC))
    for answers in ("free", "template"):
        engine = ScoringEngine(whole.mllm, replace(whole.prompt, answers=answers), config)
        scorer = LocalScorer(engine)
        teacher = Consensus(config, dataset, engine.prompt, scorer, CPU)
        # Freely a random model writes nothing in form; a template's answers are its own.
        given = (tuple(WRITTEN),) * len(batch.pairs) if answers == "free" else None
        quiet = ScoreOptions(gradient=False, attention=False)
        teacher.hear(batch, scorer.score(ScoreRequest(0, batch.index, batch.pairs, tokens, quiet, answers=given)))
        said = [counts for of_class in teacher.tally.values() for counts in of_class.values()]
        assert said and not any("" in counts for counts in said), "a value of spaces is no word"
        teacher.end_step(config.consensus.refresh_steps)
        lesson = teacher.request(batch, tokens)
        assert lesson is not None
        taught = scorer.score(lesson)
        assert taught.contributes_P.all() and (taught.num_taught_P > 0).all() and (taught.log_probs_PG < 0).all()
        assert taught.token_grads_P2LTD.isfinite().all()
        assert (taught.token_grads_P2LTD.flatten(3).abs().amax(dim=3) > 0).all(), "both images of every lesson learn"
