"""Real configurations: the bundled demo MLLM, and the paper's recipe on Qwen3-VL-8B scaled down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from saga_ray.configure import resolve
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.types import ImagePair, ScoreRequest, VisualTokens
from tests.helpers.scoring import relative
from tests.helpers.small_mllm import scaled_down_8b_folder, small_answer


def test_the_papers_recipe_scores_qwen3_vl_8b_scaled_down(tmp_path: Path) -> None:
    folder = scaled_down_8b_folder(tmp_path / "8b")
    overrides = {
        "data.root": "unused",
        "mllm.path": str(folder),
        "mllm.dtype": "float64",
        "grpo.max_new_tokens": 8,
        "grpo.group_size": 2,
    }
    config = resolve("cars", overrides=overrides)
    assert (config.recipe, config.grpo.temperature, config.grpo.top_p) == ("paper", 0.7, 0.95)
    engine = build_engine(config)
    assert engine.capture_layer == 25, "the 26th of 36"
    assert "- fenders and wheel arches" in engine.texts[0]
    tokens = VisualTokens(torch.randn(2, 4, 49, 32, dtype=torch.float64), (7, 7))
    pairs = (ImagePair(0, 1, True, 0),)
    sampled = LocalScorer(engine).score(ScoreRequest(0, 0, pairs, tokens))
    assert sampled.num_tokens_PG.max() <= 8

    group = (small_answer("hooked", "plain", "hooked", "plain", "yes").replace('"same"', '"same_model"'), "no idea")
    request = ScoreRequest(0, 0, pairs, tokens, answers=(group,))
    shared = engine.score(request)
    naive = ScoringEngine(engine.mllm, engine.prompt, config, path="naive").score(request)
    assert shared.rewards_PG.tolist() == [[1.0, 0.0]]
    assert shared.attention_count_P2.tolist() == [[2, 2]]
    assert relative(shared.token_grads_P2LTD, naive.token_grads_P2LTD) < 1e-10
    assert (shared.token_grads_P2LTD.abs().amax(dim=(3, 4)) > 0).all()


def test_the_bundled_demo_model_judges_pictures_of_the_demo_world() -> None:
    from saga_ray.mllm.demo import words

    config = resolve("demo", overrides={"grpo.group_size": 2})
    engine = build_engine(config)
    assert engine.prompt.verdict_key == words.VERDICT_KEY
    assert engine.max_new_tokens == words.MAX_ANSWER_TOKENS
    rng = np.random.default_rng(0)
    size = [len(values) for values in words.ATTRIBUTES.values()]
    first, second = (np.array([rng.integers(n) for n in size]) for _ in range(2))
    pixels = torch.from_numpy(rng.normal(size=(2 * 64, 3 * 2 * 8 * 8))).float()
    with torch.no_grad():
        seen = engine.mllm.model.model.get_image_features(pixels, torch.tensor([[1, 8, 8]] * 2), return_dict=True)
    levels = [torch.stack(list(level)) for level in (seen.pooler_output, *seen.deepstack_features)]
    tokens = VisualTokens(torch.stack(levels, dim=1), (4, 4))
    verdict_is_same = len(words.written_differences(first, second)) <= words.SAME_AT_MOST
    group = (words.answer_text(first, second), "{")
    request = ScoreRequest(0, 0, (ImagePair(0, 1, verdict_is_same, 0),), tokens, answers=(group,))
    result = LocalScorer(engine).score(request)
    assert result.rewards_PG.tolist() == [[1.0, 0.0]]
    assert result.num_tokens_PG[0, 0] == len(words.answer_tokens(first, second))
    assert result.attention_count_P2.tolist() == [[10, 10]], "one token per value"
    assert torch.allclose(result.attention_sum_P2T[0].sum(dim=1), torch.tensor([10.0, 10.0]))
    naive = ScoringEngine(engine.mllm, engine.prompt, config, path="naive").score(request)
    assert relative(result.token_grads_P2LTD, naive.token_grads_P2LTD) < 1e-5
