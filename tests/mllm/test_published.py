"""Folders with files as they are published load and give what the same folders give with every token named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers.models.smolvlm.processing_smolvlm as smolvlm_processing

from saga_ray.mllm.loading import load_tokenizer
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.identity import expected_identity
from saga_ray.scorer.length import prompt_words
from saga_ray.scorer.local import build_engine
from saga_ray.types import ImagePair, ScoreRequest, VisualTokens
from tests.helpers.published import as_published
from tests.helpers.scoring import small_run_config
from tests.helpers.small_families import HIDDEN, SMALL_FAMILIES, small_family_folder

ANSWERS = (('{"differences":"none","same_species":"yes"}', '{"differences":"none","same_species":"no"}'),) * 2


def asked(engine: ScoringEngine) -> ScoreRequest:
    shape = (4, engine.mllm.num_levels, 4, HIDDEN)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    pairs = (ImagePair(0, 1, True, 0), ImagePair(2, 3, False, 1))
    return ScoreRequest(0, 0, pairs, VisualTokens(tokens, (2, 2)), answers=ANSWERS)


@pytest.mark.parametrize("name", SMALL_FAMILIES)
def test_files_as_published_give_the_marks_texts_and_scores_of_named_tokens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smolvlm_processing, "num2words", str)
    bare = small_family_folder(tmp_path / "bare", name)
    named = as_published(Path(shutil.copytree(bare, tmp_path / "named")), name, named=True)
    as_published(bare, name)
    tokenizers = [load_tokenizer(folder) for folder in (bare, named)]
    special = [key for key in SMALL_FAMILIES[name].special if key.endswith("_token")]
    assert all(hasattr(tokenizers[1], key) for key in special) and not any(hasattr(tokenizers[0], k) for k in special)
    configs = [small_run_config(folder, prompt__variant="generic") for folder in (bare, named)]
    ours, theirs = (build_engine(config) for config in configs)
    assert ours.texts == theirs.texts and ours.mllm.marks == theirs.mllm.marks
    assert ours.describe()["prompt"] == expected_identity(configs[0])["prompt"] == theirs.describe()["prompt"]
    assert (ours.mllm.end_ids, ours.describe()["prompt_tokens"]) == (
        theirs.mllm.end_ids,
        theirs.describe()["prompt_tokens"],
    )
    words = prompt_words(ours.prompt, bare, tokenizers[0])
    num_text = sum(words.num_tokens) + 2 * words.num_closing
    assert str(num_text) == ours.describe()["prompt_tokens"]
    layout = ours.mllm.layout(ours.texts, (2, 3))
    assert ours.mllm.family.num_positions(num_text, (2, 3)) == int(layout.positions_3C.max()) + 1
    assert torch.equal(ours.mllm.bias_V, theirs.mllm.bias_V)
    got, want = (engine.score(asked(engine)) for engine in (ours, theirs))
    assert want.contributes_P.all() and want.verdicts_PG.tolist() == [[1, 0]] * 2
    assert torch.equal(got.log_probs_PG, want.log_probs_PG)
    assert torch.equal(got.token_grads_P2LTD, want.token_grads_P2LTD)
