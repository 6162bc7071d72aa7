"""The scorer in this process, rounding what would cross a wire exactly as the remote one does."""

from __future__ import annotations

from saga_ray.config import RunConfig
from saga_ray.mllm.loading import load_mllm
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.prompt import run_prompt
from saga_ray.scorer.wire import on_device, rounded_request, rounded_result
from saga_ray.types import ScoreRequest, ScoreResult


def build_engine(config: RunConfig) -> ScoringEngine:
    """Load the frozen MLLM and the run's prompt; in a worker or replica alike.

    Raises:
        ValueError: one sentence with key, folder or file and what to do.
    """
    prompt = run_prompt(config)  # before anything large is read
    return ScoringEngine(load_mllm(config.mllm), prompt, config)


class LocalScorer:
    """`Scorer` around an engine in this process."""

    def __init__(self, engine: ScoringEngine) -> None:
        self.engine = engine

    def score(self, request: ScoreRequest) -> ScoreResult:
        """As `ScoringEngine.score`, tokens and gradients rounded to the MLLM's dtype on the way."""
        dtype = self.engine.mllm.dtype
        result = rounded_result(self.engine.score(rounded_request(request, dtype)), dtype)
        tokens_NLTD = request.tokens.tokens_NLTD
        return on_device(rounded_result(result, tokens_NLTD.dtype), tokens_NLTD.device)

    def describe(self) -> dict[str, str]:
        """Identity of weights, prompt and code; dtype; process."""
        return self.engine.describe()
