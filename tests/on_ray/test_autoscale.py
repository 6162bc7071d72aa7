"""How many replicas so many tokens are worth."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from saga_ray.config import RunConfig
from saga_ray.configure import with_override
from saga_ray.on_ray.autoscale import TokenPolicy
from saga_ray.on_ray.replica import TOKENS
from saga_ray.on_ray.serve import scorer_app
from saga_ray.scorer.engines import scoring_key


def _seen(tokens: dict[str, float], requests: float, queued: float = 0.0) -> SimpleNamespace:
    metrics = {"tokens": tokens} if tokens else {}
    return SimpleNamespace(aggregated_metrics=metrics, total_num_requests=requests, total_queued_requests=queued)


def test_a_replica_for_every_so_many_tokens() -> None:
    policy = TokenPolicy(1000)
    assert policy(_seen({"a": 500.0}, 1))[0] == pytest.approx(0.5)
    assert policy(_seen({"a": 2000.0, "b": 1000.0}, 6))[0] == pytest.approx(3.0)
    assert policy(_seen({"a": 2000.0}, 8, queued=4))[0] == pytest.approx(4.0), "those on their way count as their like"
    assert policy(_seen({}, 0))[0] == 0
    assert policy(_seen({}, 3))[0] == 3, "before any replica has told its tokens"


def test_the_deployment_scales_only_where_it_is_asked_to(small_config: RunConfig) -> None:
    fixed = scorer_app(small_config, 1, selector={}, warm=False)._bound_deployment._deployment_config
    assert fixed.num_replicas == 1 and fixed.autoscaling_config is None
    grows = with_override(with_override(small_config, "resources.max_scorers", 3), "scorer.tokens_per_request", 77)
    scaling = scorer_app(grows, 1, selector={}, warm=False)._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    assert scaling.policy.policy_kwargs == {"tokens_per_replica": 77}
    assert TOKENS == "tokens"
    with pytest.raises(ValueError, match=r"resources\.max_scorers: 1 is less than resources\.num_scorers \(2\)"):
        with_override(with_override(small_config, "resources.max_scorers", 1), "resources.num_scorers", 2)


def test_a_replica_may_use_a_fraction_of_a_gpu_or_several(small_config: RunConfig) -> None:
    shared = with_override(small_config, "resources.gpus_per_scorer", 0.25)
    options = scorer_app(shared, 1, selector={}, warm=False)._bound_deployment.ray_actor_options
    assert options["num_gpus"] == 0.25
    spread = with_override(with_override(small_config, "mllm.device_map", "auto"), "resources.gpus_per_scorer", 2)
    assert scorer_app(spread, 1, selector={}, warm=False)._bound_deployment.ray_actor_options["num_gpus"] == 2
    for value, sentence in ((2, "idle; set mllm.device_map=auto"), (1.5, "neither a share of one GPU")):
        with pytest.raises(ValueError, match=rf"resources\.gpus_per_scorer: {value} .*{sentence}"):
            with_override(small_config, "resources.gpus_per_scorer", value)


def test_runs_share_an_engine_exactly_if_they_score_alike(small_config: RunConfig) -> None:
    key = scoring_key(small_config)
    for name, value in (("seed", 7), ("grpo.refill", False), ("scorer.timeout_s", 5.0), ("scorer.service", "a")):
        assert scoring_key(with_override(small_config, name, value)) == key, name
    for name, value in (("grpo.group_size", 3), ("prompt.variant", "generic"), ("scorer.pairs_per_chunk", 2)):
        assert scoring_key(with_override(small_config, name, value)) != key, name
