from pathlib import Path

import pytest
import torch

from saga_ray.config import RunConfig
from saga_ray.mllm.gradients import Policy, naive_hidden, token_log_probs
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.train.context import LocalContext
from saga_ray.train.errors import NonFiniteError
from saga_ray.train.step import Model, accumulate_gradients
from saga_ray.types import Dataset, ScoreRequest, VisualTokens
from tests.train.small import Elsewhere, KnownScorer, small_model, small_run_config, stream

CPU = LocalContext(torch.device("cpu"))


def _gradients(model: Model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.trainable()}


def _largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference of any tensor, relative to the largest gradient of all."""
    assert ours.keys() == theirs.keys()
    scale = max(float(value.abs().max()) for value in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours) / scale


def _naive_gradients(config: RunConfig, dataset: Dataset, scorer: LocalScorer, num_micro_batches: int) -> dict:
    """The whole loss of a step in one graph, through encoder and MLLM, every answer with its own prompt."""
    model, engine = small_model(config, dataset), scorer.engine
    total, chosen = 0.0, []
    for batch in stream(config, dataset, stop=num_micro_batches):
        encoded = model.encoder(torch.from_numpy(batch.images_NHWC))
        total = total + model.metric_loss(encoded.embedding_NE, torch.from_numpy(batch.labels_N)) / num_micro_batches
        tokens = VisualTokens(encoded.tokens.tokens_NLTD.detach(), encoded.tokens.grid_hw)
        result = scorer.score(ScoreRequest(config.seed, batch.index, batch.pairs, tokens))
        contributing = sorted(result.contributes_P.nonzero().flatten().tolist(), key=lambda p: batch.pairs[p].number)
        chosen += [(encoded.tokens, batch.pairs[p], result, p) for p in contributing]
    chosen = chosen[: config.grpo.contributing_pairs]
    by_token = config.grpo.normalisation == "dapo"
    num_units = sum(int(r.num_tokens_PG[p].sum()) if by_token else r.rewards_PG.shape[1] for _, _, r, p in chosen)
    num_attributes = sum(int(result.attention_count_P2[p].sum()) for _, _, result, p in chosen)
    assert num_attributes > 0
    for tokens, pair, result, p in chosen:
        both = [pair.first, pair.second]
        layout, _ = engine._layout(tokens.grid_hw)
        prompt = torch.tensor(layout.prompt_ids(engine.mllm.model.config.image_token_id))
        ids_GR = result.token_ids_PGR[p]
        hidden_GRD = naive_hidden(engine.mllm, layout, prompt, tokens.tokens_NLTD[both], ids_GR)
        mask_GR = ids_GR >= 0
        log_probs_N = token_log_probs(
            engine.mllm, hidden_GRD[mask_GR], ids_GR[mask_GR], None, Policy(config.grpo.temperature, config.grpo.top_p)
        )
        advantages_N = result.advantages_PG[p][mask_GR.nonzero()[:, 0]]
        if config.grpo.normalisation == "grpo":  # every answer's mean over its own tokens
            advantages_N = advantages_N / mask_GR.sum(dim=1)[mask_GR.nonzero()[:, 0]]
        total = total - (advantages_N * log_probs_N).sum() / num_units
        weights_2T = model.encoder.pooler(tokens.tokens_NLTD[both, 0].detach())[1]
        for side in (0, 1):
            count = int(result.attention_count_P2[p, side])
            if count:
                teacher_T = result.attention_sum_P2T[p, side] / count
                divergence = (teacher_T * (teacher_T.log() - weights_2T[side].log())).sum()
                total = total + count * divergence / num_attributes
    total.backward()
    return _gradients(model)


@pytest.mark.parametrize(("pairs_wanted", "normalisation"), [(3, "dapo"), (16, "dapo"), (16, "rloo"), (16, "grpo")])
def test_whole_gradient_equals_autograd_of_the_full_loss(
    mllm: Path, dataset: Dataset, pairs_wanted: int, normalisation: str
) -> None:
    config = small_run_config(
        mllm, mllm__dtype="float64", grpo__normalisation=normalisation, grpo__max_micro_batches=2, grpo__contributing_pairs=pairs_wanted,
        loss__potential_field__delta=1.0, loss__potential_field__alpha=1.0,
    )  # fmt: skip
    scorer = LocalScorer(build_engine(config))
    model = small_model(config, dataset)
    report = accumulate_gradients(model, stream(config, dataset), scorer, config, CPU, step=1)
    ours, naive = _gradients(model), _naive_gradients(config, dataset, scorer, 2)
    used = report.metrics["grpo/contributing_pairs"]
    assert used == 3 if pairs_wanted == 3 else 3 < used < 16  # surplus dropped, or every one used
    assert _largest_difference(ours, naive) < 1e-9
    # Every part of the sum matters: DeepStack mergers learn from GRPO alone, the pooler's query also from alignment.
    assert all(value.any() for value in ours.values())


def test_each_loss_reaches_what_it_should(mllm: Path, dataset: Dataset) -> None:
    def with_gradient(**weights: float) -> set[str]:
        changes = {f"loss__weights__{name}": weights.get(name, 0.0) for name in ("metric", "grpo", "alignment")}
        config = small_run_config(mllm, **changes)
        model = small_model(config, dataset)
        accumulate_gradients(model, stream(config, dataset), KnownScorer(), config, CPU, step=1)
        return {name for name, grad in _gradients(model).items() if grad.any()}

    tower = {name for name in with_gradient(grpo=1.0)}
    assert all(name.startswith("encoder.tower.") for name in tower)
    assert any("deepstack_merger_list" in name for name in tower)
    assert with_gradient(alignment=1.0) == {"encoder.pooler.query", "encoder.pooler.key"}
    metric = with_gradient(metric=1.0)
    assert "metric_loss.proxies" in metric and not any("deepstack" in name for name in metric)
    everything = {name for name, _ in small_model(small_run_config(mllm), dataset).trainable()}
    assert with_gradient(metric=1.0, grpo=1.0, alignment=1.0) == everything


def test_search_ends_at_enough_pairs_and_drops_the_surplus_in_plan_order(mllm: Path, dataset: Dataset) -> None:
    config = small_run_config(mllm, grpo__refill=True, grpo__max_micro_batches=5, grpo__contributing_pairs=5)
    scorer = KnownScorer(lambda micro_batch, number: number in (1, 4, 6))
    report = accumulate_gradients(small_model(config, dataset), stream(config, dataset), scorer, config, CPU, step=1)
    assert report.num_micro_batches == len(scorer.requests) == 2
    numbers = [(each.place, report.scored[each.place].batch.pairs[each.pair].number) for each in report.chosen]
    assert numbers == [(0, 1), (0, 4), (0, 6), (1, 1), (1, 4)]


def test_search_is_bounded_and_counts_what_it_gave_up_on(mllm: Path, dataset: Dataset) -> None:
    config = small_run_config(mllm, grpo__refill=True, grpo__max_micro_batches=3, grpo__contributing_pairs=9)
    scorer = KnownScorer(lambda micro_batch, number: micro_batch == 1 and number == 2)
    report = accumulate_gradients(small_model(config, dataset), stream(config, dataset), scorer, config, CPU, step=1)
    assert report.metrics["grpo/micro_batches"] == 3 and report.metrics["grpo/contributing_pairs"] == 1
    assert report.metrics["grpo/zero_advantage_share"] == pytest.approx(23 / 24)


def test_search_ends_where_the_data_ends(mllm: Path, dataset: Dataset) -> None:
    config = small_run_config(mllm, grpo__refill=True, grpo__max_micro_batches=9)
    silent = KnownScorer(lambda micro_batch, number: False)
    batches = stream(config, dataset, stop=2)
    report = accumulate_gradients(small_model(config, dataset), batches, silent, config, CPU, step=1)
    assert report.num_micro_batches == 2


@pytest.mark.parametrize("method", ["saga", "potential-field", "potential-field+alignment"])
def test_without_refill_every_method_sees_the_same_number_of_images(mllm: Path, dataset: Dataset, method: str) -> None:
    config = small_run_config(mllm, method, grpo__max_micro_batches=3, grpo__contributing_pairs=1)
    scorer = KnownScorer() if config.asks_the_mllm else None
    report = accumulate_gradients(small_model(config, dataset), stream(config, dataset), scorer, config, CPU, step=1)
    assert report.num_micro_batches == 3


def test_a_baseline_with_refill_takes_one_micro_batch(mllm: Path, dataset: Dataset) -> None:
    config = small_run_config(mllm, "potential-field", grpo__refill=True, grpo__max_micro_batches=3)
    report = accumulate_gradients(small_model(config, dataset), stream(config, dataset), None, config, CPU, step=1)
    assert report.num_micro_batches == 1


def test_the_same_micro_batch_twice_gives_the_gradient_of_once(mllm: Path, dataset: Dataset) -> None:
    found = []
    for num in (1, 2):
        config = small_run_config(
            mllm, mllm__dtype="float64", grpo__max_micro_batches=num, grpo__contributing_pairs=100
        )
        model = small_model(config, dataset)
        batch = next(stream(config, dataset))
        accumulate_gradients(model, iter([batch] * num), KnownScorer(), config, CPU, step=1)
        found.append(_gradients(model))
    assert _largest_difference(*found) < 1e-12


def test_gradients_of_one_step_do_not_leak_into_the_next(mllm: Path, dataset: Dataset) -> None:
    config = small_run_config(mllm)
    model, batch = small_model(config, dataset), next(stream(config, dataset))
    accumulate_gradients(model, iter([batch]), KnownScorer(), config, CPU, step=1)
    first = _gradients(model)
    accumulate_gradients(model, iter([batch]), KnownScorer(), config, CPU, step=2)
    assert all(torch.equal(first[name], grad) for name, grad in _gradients(model).items())


def test_only_what_is_needed_is_asked(mllm: Path, dataset: Dataset) -> None:
    asked = {}
    for method in ("saga", "potential-field+grpo", "potential-field+alignment"):
        config, scorer = small_run_config(mllm, method), KnownScorer()
        accumulate_gradients(small_model(config, dataset), stream(config, dataset), scorer, config, CPU, step=1)
        asked[method] = (scorer.requests[0].options.gradient, scorer.requests[0].options.attention)
    assert asked == {
        "saga": (True, True),
        "potential-field+grpo": (True, False),
        "potential-field+alignment": (False, True),
    }


def test_logged_losses_and_gradient_geometry_are_those_of_the_definition(mllm: Path, dataset: Dataset) -> None:
    config = small_run_config(mllm, mllm__dtype="float64", loss__weights__grpo=2.0)
    model, batch = small_model(config, dataset), next(stream(config, dataset))
    metrics = accumulate_gradients(model, iter([batch]), KnownScorer(), config, CPU, step=1).metrics
    numbers = [pair.number for pair in batch.pairs]
    num_tokens = sum(2 * (3 + number) for number in numbers)
    assert metrics["loss/grpo"] == pytest.approx(0.0)  # advantages 1 and -1 of equal log-probs
    assert metrics["grpo/tokens_per_answer"] == pytest.approx(num_tokens / (2 * len(numbers)))
    tokens = model.encoder.encode_tokens(torch.from_numpy(batch.images_NHWC))
    tokens.tokens_NLTD.retain_grad()
    model.metric_loss(model.encoder.pool(tokens)[0], torch.from_numpy(batch.labels_N)).backward()
    metric_NLTD, grpo_NLTD = tokens.tokens_NLTD.grad, torch.zeros_like(tokens.tokens_NLTD)
    for pair in batch.pairs:
        for position in (pair.first, pair.second):
            grpo_NLTD[position] += 2.0 * (1 + pair.number) * tokens.tokens_NLTD[position].detach() / num_tokens
    shown = grpo_NLTD.flatten(1).any(dim=1)
    metric, grpo = metric_NLTD[shown].flatten(), grpo_NLTD[shown].flatten()
    assert metrics["gradient/metric"] == pytest.approx(float(metric_NLTD.norm()))  # of all images
    assert metrics["gradient/grpo"] == pytest.approx(float(grpo.norm()))
    assert metrics["gradient/cosine"] == pytest.approx(float(metric @ grpo / metric.norm() / grpo.norm()))


def test_a_loss_that_is_not_a_number_stops_the_step_by_name(mllm: Path, dataset: Dataset) -> None:
    config = small_run_config(mllm)
    model = small_model(config, dataset)
    with torch.no_grad():
        model.metric_loss.proxies[0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"loss/metric is nan at step 7: stopped before the update"):
        accumulate_gradients(model, stream(config, dataset), KnownScorer(), config, CPU, step=7)


@pytest.mark.parametrize("refill", [False, True])
def test_a_scorer_elsewhere_works_meanwhile_and_changes_no_number(mllm: Path, dataset: Dataset, refill: bool) -> None:
    config = small_run_config(mllm, grpo__max_micro_batches=3, grpo__refill=refill, grpo__contributing_pairs=20)
    known = KnownScorer(contributes=lambda micro_batch, number: (micro_batch + number) % 2 == 0)
    found = []
    for scorer in (known, Elsewhere(known)):
        model = small_model(config, dataset)
        report = accumulate_gradients(model, stream(config, dataset), scorer, config, CPU, step=1)
        numbers = {k: v for k, v in report.metrics.items() if not k.startswith("seconds")}
        found.append((_gradients(model), numbers, [(c.place, c.pair) for c in report.chosen]))
    (grads, numbers, chosen), (theirs, their_numbers, their_chosen) = found
    assert numbers == their_numbers and chosen == their_chosen and len(chosen) > 1
    assert numbers["grpo/micro_batches"] == 3
    assert all(torch.equal(grad, theirs[name]) for name, grad in grads.items())
    steps = [0, 1, 2]
    ahead = [("sent", i) for i in steps] + [("waited", i) for i in steps]
    in_turn = [(what, i) for i in steps for what in ("sent", "waited")]
    assert scorer.story == (in_turn if refill else ahead)
