"""The scorer behind Ray Serve."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from saga_ray.config import RunConfig
from saga_ray.configure import with_override
from saga_ray.errors import is_ours
from saga_ray.on_ray.remote import RemoteScorer, remote_scorer
from saga_ray.on_ray.replica import REFUSED
from saga_ray.on_ray.serve import scorer_service
from saga_ray.scorer.engine import ScoringEngine
from saga_ray.scorer.local import LocalScorer, build_engine
from saga_ray.scorer.parts import join_results, split_request
from saga_ray.types import ImagePair, ScoreRequest, ScoreResult, VisualTokens

NUM_PAIRS = 5


def _request(dtype: torch.dtype = torch.float32, seed: int = 3) -> ScoreRequest:
    generator = torch.Generator().manual_seed(7)
    tokens_NLTD = torch.randn(6, 4, 4, 64, generator=generator, dtype=torch.float64).to(dtype)
    pairs = [(0, 1, True), (2, 3, False), (1, 4, True), (5, 0, False), (3, 3, True)]
    shown = tuple(ImagePair(a, b, same, number) for number, (a, b, same) in enumerate(pairs))
    return ScoreRequest(seed, 2, shown, VisualTokens(tokens_NLTD, (2, 2)))


def _assert_equal(one: ScoreResult, other: ScoreResult) -> None:
    assert one.texts_PG == other.texts_PG
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


@pytest.fixture(scope="module")
def local(small_config: RunConfig) -> LocalScorer:
    return LocalScorer(build_engine(small_config))


@pytest.fixture(scope="module")
def app(ray_cluster: None, small_config: RunConfig) -> Iterator[str]:
    from saga_ray.on_ray.cluster import connect

    with connect([small_config]) as cluster, scorer_service([small_config], cluster) as name:
        assert name is not None
        yield name


def test_parts_of_a_request_put_together_are_the_whole_answer(local: LocalScorer) -> None:
    request = _request()
    whole = local.score(request)
    assert bool(whole.contributes_P.any()), "the case must not be empty"
    for num_parts in (2, 3, 9):
        parts = split_request(request, num_parts)
        assert [pair.number for part in parts for pair in part.pairs] == list(range(NUM_PAIRS))
        assert max(len(part.tokens) for part in parts) < len(request.tokens)
        joined = join_results([local.score(part) for part in parts])
        _assert_equal(whole, joined)
        assert joined.counters["num_tokens"] == whole.counters["num_tokens"]
        assert joined.counters["process"] == whole.counters["process"]


def test_remote_equals_local_bit_for_bit_and_names_another_process(
    app: str, local: LocalScorer, small_config: RunConfig
) -> None:
    torch.set_num_threads(1)
    here = local.score(_request())
    there = remote_scorer(app, small_config).score(_request())
    _assert_equal(here, there)
    assert here.counters["process"].endswith(f":{os.getpid()}")
    assert not there.counters["process"].endswith(f":{os.getpid()}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_cross_the_wire_as_they_are_rounded_locally(app: str, small_config: RunConfig, dtype: str) -> None:
    config = with_override(small_config, "mllm.dtype", dtype)
    here = LocalScorer(build_engine(config)).score(_request())
    there = remote_scorer(app, config).score(_request())
    _assert_equal(here, there)
    assert there.token_grads_P2LTD.dtype == torch.float32


def test_float64_in_a_replica_lifts_the_models_own_float32(app: str, small_config: RunConfig) -> None:
    config = with_override(small_config, "mllm.dtype", "float64")
    engine = build_engine(config)
    naive = LocalScorer(ScoringEngine(engine.mllm, engine.prompt, config, path="naive"))
    request = _request(torch.float64)
    exact, remote = naive.score(request), remote_scorer(app, config).score(request)
    assert exact.texts_PG == remote.texts_PG
    error = (exact.token_grads_P2LTD - remote.token_grads_P2LTD).norm() / exact.token_grads_P2LTD.norm()
    assert error < 1e-10


def test_one_service_answers_for_runs_that_score_differently(app: str, small_config: RunConfig) -> None:
    for key, value in (("grpo.group_size", 3), ("grpo.temperature", 0.5), ("prompt.variant", "generic"), ("seed", 9)):
        config = with_override(small_config, key, value)
        here = LocalScorer(build_engine(config)).score(_request())
        _assert_equal(here, remote_scorer(app, config).score(_request()))


def test_the_scorer_stands_on_the_node_of_its_group(app: str) -> None:
    import ray
    from ray.util.state import list_actors

    nodes = {node["NodeID"]: node["Labels"].get("saga-ray.io/group") for node in ray.nodes() if node["Alive"]}
    replicas = [a for a in list_actors(filters=[("state", "=", "ALIVE")]) if "ScorerReplica" in a.class_name or a.class_name.endswith("Scorer")]  # fmt: skip
    assert replicas and {nodes[replica.node_id] for replica in replicas} == {"scoring"}
    assert nodes[ray.get_runtime_context().get_node_id()] == "training"


def test_a_replica_killed_at_work_costs_time_and_changes_nothing(
    app: str, local: LocalScorer, small_config: RunConfig
) -> None:
    remote = remote_scorer(app, small_config)
    here = local.score(_request())
    pid = int(remote.score(_request()).counters["process"].rsplit(":", 1)[1])
    # The request is large enough to be at work when its process goes.
    many = tuple(replace(pair, number=n) for n, pair in enumerate(_request().pairs * 8))
    large = replace(_request(), pairs=many)
    expected = local.score(large)
    killer = threading.Timer(0.15, os.kill, (pid, signal.SIGKILL))
    killer.start()
    after = remote.score(large)
    killer.join()
    _assert_equal(expected, after)
    assert int(after.counters["process"].rsplit(":", 1)[1]) != pid
    _assert_equal(here, remote.score(_request()))


def test_what_the_engine_refuses_comes_back_as_its_sentence(app: str, small_config: RunConfig) -> None:
    config = with_override(small_config, "mllm.path", "/nowhere/at-all")
    with pytest.raises(ValueError, match=r"mllm\.path: /nowhere/at-all"):
        remote_scorer(app, config).score(_request())


def test_a_scorer_that_never_answers_ends_in_a_sentence(small_config: RunConfig) -> None:
    class Silence:
        """A handle whose requests always time out."""

        def __getattr__(self, name: str) -> Silence:
            return self

        def remote(self, *args: object) -> Silence:
            return self

        def result(self, timeout_s: float) -> None:
            raise TimeoutError(f"nothing within {timeout_s} s")

        def broadcast(self, *args: object) -> Silence:
            return self

        def results(self, timeout_s: float, return_exceptions: bool) -> list[object]:
            return [False, TimeoutError("this replica does not answer either")]

    config = with_override(with_override(small_config, "scorer.timeout_s", 0.5), "scorer.max_retries", 1)
    with pytest.raises(
        ValueError,
        match=r"scorer\.max_retries: the scorer did not answer 2 times.*scorer\.timeout_s=0\.5.*TimeoutError",
    ):
        RemoteScorer(Silence(), config).score(_request())


class Replies:
    """A handle that gives one reply after another; an error among them is raised."""

    def __init__(self, *replies: object) -> None:
        self.replies, self.num_asked = list(replies), 0

    def __getattr__(self, name: str) -> Replies:
        return self

    def remote(self, *args: object) -> Replies:
        return self

    def result(self, timeout_s: float) -> object:
        self.num_asked += 1
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def test_a_librarys_error_in_a_replica_is_no_sentence(small_config: RunConfig) -> None:
    with pytest.raises(ValueError, match=r"^mllm\.path: gone$") as caught:
        RemoteScorer(Replies({REFUSED: "mllm.path: gone"}), small_config).score(_request())
    assert type(caught.value) is ValueError and is_ours(caught.value)
    broken = RayTaskError("score", "Traceback", ValueError("shapes do not match"), "replica", 1, "127.0.0.1")
    with pytest.raises(RayTaskError) as caught:
        RemoteScorer(Replies(broken.as_instanceof_cause()), small_config).score(_request())
    assert not is_ours(caught.value)


def test_being_turned_away_is_no_failed_attempt(small_config: RunConfig, local: LocalScorer) -> None:
    config = with_override(small_config, "scorer.max_retries", 0)
    full = [BackPressureError(num_queued_requests=1, max_queued_requests=1) for _ in range(3)]
    handle = Replies(*full, local.describe())
    assert RemoteScorer(handle, config).describe() == local.describe()
    assert handle.num_asked == 4


def test_a_reply_that_says_another_identity_or_none_is_refused_before_it_is_read(
    small_config: RunConfig, local: LocalScorer
) -> None:
    told = local.describe()
    for reply, sentence in (
        (
            {"identity": {**told, "prompt": "other"}},
            r"the scorer has answered with another prompt .*\(prompt other, not ",
        ),
        ({"identity": {**told, "code": "other"}}, "another version of saga-ray's scorer"),
        ({"identity": {**told, "dtype": "bfloat16"}}, r"another dtype .*\(dtype bfloat16, not float32\)"),
        ({}, r"other weights, tokens or settings .*\(weights None, not "),
    ):
        handle = Replies(told, reply)
        with pytest.raises(ValueError, match=rf"^scorer\.service: .*{sentence}.*the same command"):
            RemoteScorer(handle, small_config).score(replace(_request(), pairs=_request().pairs[:1]))
        assert handle.num_asked == 2, "it is not asked again"


def test_a_trainer_bounds_what_it_has_under_way(small_config: RunConfig, local: LocalScorer) -> None:
    class Slow:
        """A handle that answers, with a refusal, when it is let; it counts who waits."""

        def __init__(self) -> None:
            self.let, self.lock, self.waiting, self.most, self.num_asked = threading.Event(), threading.Lock(), 0, 0, 0
            self.describe = self.score = self

        def remote(self, *args: object) -> Slow:
            return self

        def result(self, timeout_s: float) -> dict[str, str]:
            with self.lock:
                self.num_asked += 1
                if self.num_asked == 1:
                    return local.describe()
                self.waiting += 1
                self.most = max(self.most, self.waiting)
            assert self.let.wait(30)
            with self.lock:
                self.waiting -= 1
            return {REFUSED: "no"}

    for settings, wanted in (({"scorer.requests_in_flight": 3}, 3), ({"resources.max_scorers": 2}, 4)):
        config = small_config
        for key, value in settings.items():
            config = with_override(config, key, value)
        handle = Slow()
        scorer = RemoteScorer(handle, config)
        answers = [scorer.begin(replace(_request(), pairs=_request().pairs[:1])) for _ in range(9)]
        for _ in range(3000):
            if handle.waiting == wanted:
                break
            time.sleep(0.01)
        time.sleep(0.2)  # for one too many
        assert handle.most == wanted
        handle.let.set()
        for answer in answers:
            with pytest.raises(ValueError, match=r"^no$"):
                answer()
        assert handle.most == wanted and handle.num_asked == 10


def test_after_the_service_nothing_of_it_is_left(ray_cluster: None, small_config: RunConfig) -> None:
    from ray import serve

    from saga_ray.on_ray.cluster import connect

    class Broken(Exception):
        pass

    before = set(serve.status().applications)
    with pytest.raises(Broken), connect([small_config]) as cluster, scorer_service([small_config], cluster) as name:
        assert name in serve.status().applications
        raise Broken
    assert set(serve.status().applications) == before


def test_a_service_deletes_what_a_killed_driver_left_and_nothing_else(
    ray_cluster: None, small_config: RunConfig
) -> None:
    import ray
    from ray import serve
    from ray._private import state

    from saga_ray.on_ray.cluster import connect

    class Nothing:
        """An application; a class of the module would load torch in each replica."""

    code = "import ray, time; ray.init(log_to_driver=False); print(ray.get_runtime_context().get_job_id(), flush=True); time.sleep(600)"
    env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    try:
        job = next(line.strip() for line in driver.stdout if re.fullmatch(r"[0-9a-f]{8}\s*", line))
        own = ray.get_runtime_context().get_job_id()
        names = [f"saga-ray-scorer-{owner}-{'0' * 12}" for owner in (job, own)] + ["saga-ray-scorer"]
        for name in names:
            serve.run(serve.deployment(Nothing, ray_actor_options={"num_cpus": 0}).bind(), name=name, route_prefix=None)
        with connect([small_config]) as cluster:
            with scorer_service([small_config], cluster):
                assert set(names) <= set(serve.status().applications), "its driver is still alive"
            driver.kill()
            for _ in range(300):
                if {entry["JobID"]: entry["IsDead"] for entry in state.jobs()}[job]:
                    break
                time.sleep(0.1)
            with scorer_service([small_config], cluster):
                assert set(names) & set(serve.status().applications) == set(names[1:])
        for name in names[1:]:
            serve.delete(name)
    finally:
        driver.kill()
        driver.wait()


def test_runs_that_never_ask_start_no_service(ray_cluster: None, small_config: RunConfig) -> None:
    from saga_ray.on_ray.cluster import connect

    baseline = with_override(with_override(small_config, "loss.weights.grpo", 0.0), "loss.weights.alignment", 0.0)
    with connect([baseline]) as cluster, scorer_service([baseline], cluster) as name:
        assert name is None
