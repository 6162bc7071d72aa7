"""What becomes of a question when its replica dies, hangs, dawdles, talks nonsense, or is taken away; in real processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_ray.config import RunConfig
from saga_ray.configure import resolve, with_override
from saga_ray.on_ray.remote import remote_scorer
from saga_ray.on_ray.replica import ScorerReplica
from saga_ray.on_ray.serve import scorer_app
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.types import ImagePair, ScoreRequest, ScoreResult, VisualTokens


def request(num_pairs: int = 4, seed: int = 3) -> ScoreRequest:
    tokens_NLTD = torch.randn(6, 4, 4, 64, generator=torch.Generator().manual_seed(7))
    pairs = tuple(ImagePair(i % 6, (2 * i + 1) % 6, i % 2 == 0, i) for i in range(num_pairs))
    return ScoreRequest(seed, 2, pairs, VisualTokens(tokens_NLTD, (2, 2)))


def assert_equal(one: ScoreResult, other: ScoreResult) -> None:
    assert one.texts_PG == other.texts_PG
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


class Orders:
    """A file that tells a faulty replica what to do with its next questions, one word for each; it writes a diary."""

    def __init__(self, folder: Path) -> None:
        self.todo, self.diary = folder / "todo", folder / "diary"
        self.todo.write_text("")
        self.diary.write_text("")

    def give(self, *words: str) -> None:
        self.diary.write_text("")
        self.todo.write_text("\n".join(words))

    @property
    def done(self) -> list[str]:
        """What was done with the questions that arrived at the model, in order."""
        return [line.split()[0] for line in self.diary.read_text().splitlines()]

    @property
    def sizes(self) -> list[int]:
        """Requests in each pass, in order."""
        return [int(line.split()[2]) for line in self.diary.read_text().splitlines()]

    def pids(self) -> set[int]:
        return {int(line.split()[1]) for line in self.diary.read_text().splitlines()}

    def wait(self, num: int) -> None:
        """Until so many questions are being computed."""
        for _ in range(1200):
            if len(self.done) >= num:
                return
            time.sleep(0.05)
        raise AssertionError(f"only {self.done} after a minute")


def faulty_replica(orders: Orders) -> type:
    """A replica that follows orders; a class of a function travels to the replica's process as it is."""
    todo_path, diary_path = str(orders.todo), str(orders.diary)

    class Faulty(ScorerReplica):
        def _scored(self, config: Any, words: Any, requests: Any) -> list[dict[str, Any]]:
            import os
            import time
            from pathlib import Path

            import numpy as np
            import torch

            todo, diary = Path(todo_path), Path(diary_path)
            word, *rest = todo.read_text().split("\n")
            todo.write_text("\n".join(rest))
            with diary.open("a") as file:
                print(word or "well", os.getpid(), len(requests), file=file)
            if word.startswith("sleep"):
                time.sleep(float(word.removeprefix("sleep")))
            if word.startswith("work"):  # as a decoder does: many small products, the interpreter between them
                latest, state_BD = time.monotonic() + float(word.removeprefix("work")), torch.eye(48)
                while time.monotonic() < latest:
                    state_BD = torch.tanh(state_BD @ state_BD)
            replies = super()._scored(config, words, requests)
            for reply in replies:
                if word == "stranger":
                    reply["identity"]["weights"] = "0123456789abcdef"
                if word == "nan":
                    reply["token_grads_P2LTD"] = np.full_like(reply["token_grads_P2LTD"], np.nan)
                if word == "short":
                    reply["rewards_PG"] = reply["rewards_PG"][:-1]
            return replies

    return Faulty


@contextlib.contextmanager
def faulty_app(config: RunConfig, orders: Orders, name: str, **options: Any) -> Iterator[str]:
    from ray import serve

    # Reserve little: the cluster of the tests has few CPUs.
    app = scorer_app(config, 1, selector={}, warm=True, replica=faulty_replica(orders), **options)
    serve.start(http_options={"location": "NoServer"}, logging_config={"log_level": "ERROR"})
    serve.run_many([serve.RunTarget(app, name=name, route_prefix=None)])
    try:
        yield name
    finally:
        with contextlib.suppress(Exception):
            serve.delete(name)


@pytest.fixture(scope="module")
def local(small_config: RunConfig) -> LocalScorer:
    return LocalScorer(build_engine(small_config))


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Orders:
    return Orders(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def config(small_config: RunConfig) -> RunConfig:
    for key, value in {"scorer.timeout_s": 20.0, "resources.cpus_per_scorer": 0.1}.items():
        small_config = with_override(small_config, key, value)
    return small_config


@pytest.fixture(scope="module")
def app(ray_cluster: None, config: RunConfig, orders: Orders) -> Iterator[str]:
    with faulty_app(config, orders, "faulty") as name:
        yield name


def _with(config: RunConfig, **values: Any) -> RunConfig:
    for key, value in values.items():
        config = with_override(config, f"scorer.{key}", value)
    return config


def test_nonsense_is_not_taken_and_asked_again(app: str, orders: Orders, config: RunConfig, local: LocalScorer) -> None:
    orders.give("", "nan", "short")
    scorer = remote_scorer(app, config)
    scorer.score(request(1))
    assert_equal(local.score(request()), scorer.score(request()))
    assert orders.done == ["well", "nan", "short", "well"]


def test_nothing_but_nonsense_ends_in_a_sentence_with_the_cause(app: str, orders: Orders, config: RunConfig) -> None:
    orders.give("nan", "nan", "nan", "nan")
    with pytest.raises(
        ValueError, match=r"did not answer 2 times.*token_grads_P2LTD holds NaN.*the same command goes on"
    ):
        remote_scorer(app, _with(config, max_retries=1)).score(request())


def test_a_slow_answer_is_waited_for_and_computed_once(
    app: str, orders: Orders, config: RunConfig, local: LocalScorer
) -> None:
    hasty = remote_scorer(app, _with(config, timeout_s=3.0, max_retries=0))
    hasty.describe()
    orders.give("sleep5")
    assert_equal(local.score(request()), hasty.score(request()))
    assert orders.done == ["sleep5"], "a replica at work, and not stuck, is not asked again"


def test_time_in_the_queue_of_a_busy_replica_is_no_failure(
    app: str, orders: Orders, config: RunConfig, local: LocalScorer
) -> None:
    hasty = remote_scorer(app, _with(config, timeout_s=2.0, max_retries=0, requests_in_flight=3))
    hasty.describe()
    orders.give("sleep1.5", "sleep1.5", "sleep1.5")
    asked = [request(1, seed=seed) for seed in range(3)]
    for each, answer in zip(asked, [hasty.begin(each) for each in asked], strict=True):
        assert_equal(local.score(each), answer())
    assert orders.done == ["sleep1.5"] * 3


def test_a_reply_of_other_weights_stops_the_run_and_is_not_asked_again(
    app: str, orders: Orders, config: RunConfig
) -> None:
    scorer = remote_scorer(app, config)
    began = scorer.describe()
    orders.give("stranger")
    with pytest.raises(ValueError, match=r"scorer\.service: faulty has answered with other weights.*0123456789abcdef, not") as caught:  # fmt: skip
        scorer.score(request())
    assert str(caught.value).count("\n") == 0 and began["weights"] in str(caught.value)
    assert orders.done == ["stranger"]


def test_event_loop_answers_while_the_model_computes(app: str, orders: Orders, config: RunConfig) -> None:
    """Products of torch and the interpreter in turn, which hold the lock that the event loop needs as well."""
    scorer = remote_scorer(app, config)
    scorer.describe()
    orders.give("work3")
    thread = threading.Thread(target=scorer.score, args=(request(),))
    thread.start()
    orders.wait(1)
    began = time.monotonic()
    scorer._handle.process_id.remote().result(timeout_s=20)
    took_s = time.monotonic() - began
    assert orders.done == ["work3"] and thread.is_alive(), "it is still at work"
    assert took_s < 2
    thread.join()


def test_requests_of_two_runs_share_a_pass_and_equal_their_own(app: str, orders: Orders, config: RunConfig) -> None:
    """In float32 a shared pass may differ in last bits, so equality is that of texts and to rounding."""
    one = _with(config, deterministic=False, requests_in_flight=8)
    other = with_override(with_override(one, "seed", 9), "grpo.contributing_pairs", 2)
    scorers = [remote_scorer(app, one), remote_scorer(app, other)]
    asked = [request(2, seed=seed) for seed in range(2)]
    alone = [scorer.score(each) for scorer, each in zip(scorers, asked, strict=True)]
    orders.give("sleep2")
    first = scorers[0].begin(request(1, seed=5))
    orders.wait(1)
    answers = [scorer.begin(each) for scorer, each in zip(scorers, asked, strict=True)]
    first()
    for answer, by_itself in zip(answers, alone, strict=True):
        together = answer()
        assert together.texts_PG == by_itself.texts_PG
        assert torch.allclose(together.token_grads_P2LTD, by_itself.token_grads_P2LTD, rtol=1e-3, atol=1e-5)
    assert orders.sizes == [1, 2], "both waited for the first, and went together"


def test_a_vocabulary_whose_file_the_replica_cannot_see_travels_with_the_question(
    app: str, orders: Orders, config: RunConfig, mllm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica's folder is that of the service; the run's file is named relative to the run's."""
    folder = tmp_path / "mllm"
    shutil.copytree(mllm_folder, folder, ignore=shutil.ignore_patterns("saga_prompt.yaml"))
    monkeypatch.chdir(tmp_path)
    words = "role: botanist\nitem: leaf\nverdict_key: same\nattributes: {edge: [smooth, toothed]}\n"
    Path("leaves.yaml").write_text(words)
    values = config.model_dump(exclude={"dataset", "recipe", "method"})
    asks = resolve("demo", file_values=values, overrides={"mllm.path": str(folder), "prompt.vocabulary": "leaves.yaml"})
    orders.give()
    assert_equal(LocalScorer(build_engine(asks)).score(request()), remote_scorer(app, asks).score(request()))
    Path("leaves.yaml").write_text(words.replace("smooth", "even"))
    with pytest.raises(
        ValueError, match=r"^prompt\.vocabulary: leaves\.yaml has changed since this run was configured"
    ):
        remote_scorer(app, asks)
    Path("leaves.yaml").unlink()
    with pytest.raises(
        ValueError, match=r"^prompt\.vocabulary: vocabulary 'leaves\.yaml' is neither a file that can be"
    ):
        remote_scorer(app, asks)


@pytest.mark.slow
def test_a_full_queue_makes_callers_wait_and_loses_nothing(
    ray_cluster: None, config: RunConfig, local: LocalScorer, tmp_path: Path
) -> None:
    orders = Orders(tmp_path)
    with faulty_app(config, orders, "narrow", max_ongoing_requests=1, max_queued_requests=1) as name:
        scorer = remote_scorer(name, _with(config, requests_in_flight=8, max_retries=0, timeout_s=120.0))
        scorer.describe()
        orders.give("sleep2")
        asked = [request(2, seed=seed) for seed in range(8)]
        answers = [scorer.begin(each) for each in asked]
        for each, answer in zip(asked, answers, strict=True):
            assert_equal(local.score(each), answer())
        assert len(orders.done) == 8, "every question once"


@pytest.mark.slow
def test_a_service_that_is_taken_away_ends_in_a_sentence_at_once(
    ray_cluster: None, config: RunConfig, tmp_path: Path
) -> None:
    from ray import serve

    orders = Orders(tmp_path)
    with faulty_app(config, orders, "gone") as name:
        scorer = remote_scorer(name, _with(config, timeout_s=600.0))
        scorer.describe()
        orders.give("sleep30")
        killer = threading.Thread(target=lambda: (orders.wait(1), serve.delete(name)))
        killer.start()
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"scorer\.service: gone is gone; the run stopped at its last checkpoint"):
            scorer.score(request())
        assert time.monotonic() - began < 60
        killer.join()
    with pytest.raises(ValueError, match=r"scorer\.service: no service 'gone' runs on this cluster"):
        remote_scorer("gone", config)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "stuck"])
def test_a_replica_that_hangs_is_replaced_and_changes_nothing(
    ray_cluster: None, config: RunConfig, local: LocalScorer, tmp_path: Path, how: str
) -> None:
    orders = Orders(tmp_path)
    impatient = _with(config, timeout_s=8.0, max_retries=9)
    with faulty_app(impatient, orders, f"hangs-{how}") as name:
        scorer = remote_scorer(name, impatient)
        scorer.score(request(1))
        (pid,) = orders.pids()
        orders.give("sleep600" if how == "stuck" else "sleep2")
        stopper = threading.Thread(target=lambda: (orders.wait(1), how == "stopped" and os.kill(pid, signal.SIGSTOP)))
        stopper.start()
        after = scorer.score(request())
        stopper.join()
        assert_equal(local.score(request()), after)
        assert int(str(after.counters["process"]).rsplit(":", 1)[1]) != pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_lost_node_costs_time_and_changes_nothing(
    ray_nodes: Any, config: RunConfig, local: LocalScorer, tmp_path: Path
) -> None:
    import ray

    nodes = [ray_nodes.add_node(num_cpus=1, labels={"place": "shaky"}, object_store_memory=80 * 2**20) for _ in "ab"]
    orders = Orders(tmp_path)
    actor = {"num_cpus": 0.1, "label_selector": {"place": "shaky"}}
    try:
        with faulty_app(config, orders, "shaky", ray_actor_options=actor) as name:
            scorer = remote_scorer(name, _with(config, timeout_s=60.0, max_retries=5))
            scorer.score(request(1))
            orders.give("sleep5")
            answer = scorer.begin(request())
            orders.wait(1)
            from ray.util.state import list_actors

            (actor_state,) = [a for a in list_actors() if a.pid in orders.pids() and a.state == "ALIVE"]
            (lost,) = [node for node in nodes if node.node_id == actor_state.node_id]
            nodes.remove(lost)
            ray_nodes.remove_node(lost, allow_graceful=False)
            assert_equal(local.score(request()), answer())
            assert {n["NodeID"] for n in ray.nodes() if not n["Alive"]} >= {lost.node_id}
    finally:
        for node in nodes:
            ray_nodes.remove_node(node)


@pytest.mark.slow
def test_replicas_come_while_tokens_wait(ray_cluster: None, config: RunConfig, tmp_path: Path) -> None:
    """Serve's autoscaler, told by the replicas; its delays are shortened."""
    from saga_ray.on_ray.serve import autoscaling

    orders = Orders(tmp_path)
    grows = with_override(with_override(config, "resources.max_scorers", 2), "scorer.tokens_per_request", 2000)
    quick = autoscaling(grows, upscale_delay_s=1.0, look_back_period_s=11.0)
    with faulty_app(grows, orders, "grows", autoscaling_config=quick) as name:
        scorer = remote_scorer(name, _with(grows, requests_in_flight=8, timeout_s=300.0))
        scorer.describe()
        orders.give(*["sleep5"] * 24)
        answers = [scorer.begin(replace(request(2, seed=seed))) for seed in range(24)]
        for answer in answers:
            answer()
        assert len(orders.pids()) == 2
