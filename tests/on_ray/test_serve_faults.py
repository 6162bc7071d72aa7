"""What becomes of a question when its replica dies, hangs, dawdles, talks nonsense, or is taken away; in real processes."""

from __future__ import annotations

import contextlib
import os
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
from saga_ray.configure import with_override
from saga_ray.on_ray.remote import RemoteScorer, remote_scorer
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
        def _scored(self, config_json: str, requests: Any) -> list[dict[str, Any]]:
            import os
            import time
            from pathlib import Path

            import numpy as np

            todo, diary = Path(todo_path), Path(diary_path)
            word, *rest = todo.read_text().split("\n")
            todo.write_text("\n".join(rest))
            with diary.open("a") as file:
                print(word or "well", os.getpid(), file=file)
            if word.startswith("sleep"):
                time.sleep(float(word.removeprefix("sleep")))
            replies = super()._scored(config_json, requests)
            for reply in replies:
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
    patient = remote_scorer(app, config)
    patient.describe()
    orders.give("sleep6")
    hasty = RemoteScorer(patient._handle, _with(config, timeout_s=4.0), app)
    assert_equal(local.score(request()), hasty.score(request()))
    assert orders.done == ["sleep6"], "the second attempt met the first at work"


def test_event_loop_answers_while_the_model_computes(app: str, orders: Orders, config: RunConfig) -> None:
    scorer = remote_scorer(app, config)
    scorer.describe()
    orders.give("sleep3")
    thread = threading.Thread(target=scorer.score, args=(request(),))
    thread.start()
    orders.wait(1)
    began = time.monotonic()
    scorer._handle.process_id.remote().result(timeout_s=20)
    assert orders.done == ["sleep3"] and thread.is_alive(), "it is still at work"
    assert time.monotonic() - began < 2.5
    thread.join()


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
