"""A standing service: several runs on one frozen MLLM, who may join, what Prometheus reads, and its end."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from saga_ray.config import RunConfig
from saga_ray.configure import with_override
from saga_ray.on_ray.remote import is_there, remote_scorer
from saga_ray.on_ray.serve import scorer_service
from saga_ray.on_ray.standing import start_service, stop_service
from saga_ray.scorer.local import LocalScorer, build_engine
from tests.on_ray.test_serve_faults import assert_equal, request

NAME = "shared-for-tests"


@pytest.fixture(scope="module")
def served(ray_cluster: None, small_config: RunConfig) -> Iterator[str]:
    from saga_ray.on_ray.cluster import connect

    with connect([small_config]) as cluster:
        start_service(small_config, cluster, NAME)
        with pytest.raises(ValueError, match=f"--name {NAME}: a service of this name runs; end it with"):
            start_service(small_config, cluster, NAME)
    yield NAME
    stop_service(NAME)
    assert not is_there(NAME)
    with pytest.raises(ValueError, match=rf"--stop {NAME}: no service of this name runs here \(running: none\)"):
        stop_service(NAME)


def test_a_service_without_room_says_so_once_and_leaves_nothing_when_it_is_given_up(
    served: str, small_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saga_ray.on_ray import standing
    from saga_ray.on_ray.cluster import connect

    monkeypatch.setattr(standing, "_SAY_AFTER_S", 1.0)
    said: list[str] = []
    latest = time.monotonic() + 60

    def looked(seconds: float) -> None:
        # As Ctrl-C, once it has had time to say more. (A signal would be lost where they are ignored, as under nohup.)
        if time.monotonic() > latest or (said and time.monotonic() > heard + 1.5):
            raise KeyboardInterrupt
        time.sleep(seconds)

    def hear(text: str) -> None:
        nonlocal heard
        said.append(text)
        heard = time.monotonic()

    heard = 0.0
    monkeypatch.setattr(standing, "time", SimpleNamespace(sleep=looked, monotonic=time.monotonic))
    # The node for scoring has two CPUs, of which the other service holds a part.
    wide = with_override(small_config, "resources.cpus_per_scorer", 2.0)
    with connect([wide]) as cluster:
        with pytest.raises(KeyboardInterrupt):
            start_service(wide, cluster, "no-room", hear)
        assert not is_there("no-room") and is_there(served)
        assert len(said) == 1
        assert re.match(
            r"waiting for room: 1 of 1 replicas have no place yet; each takes 2 CPUs \(resources\.cpus", said[0]
        )


@pytest.mark.slow
def test_a_service_that_cannot_load_its_weights_ends_in_a_sentence(served: str, small_config: RunConfig) -> None:
    from saga_ray.on_ray.cluster import connect

    broken = with_override(small_config, "mllm.path", "/nowhere/at-all")
    with connect([broken]) as cluster:
        with pytest.raises(
            ValueError, match=r"--name broken: the service did not start \(.*mllm\.path: /nowhere/at-all"
        ):
            start_service(broken, cluster, "broken")
        assert not is_there("broken") and is_there(served)


def test_runs_join_a_service_wherever_their_folder_lies_and_leave_it_running(
    served: str, small_config: RunConfig, mllm_folder: Path, tmp_path: Path
) -> None:
    from saga_ray.on_ray.cluster import connect

    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    for path in mllm_folder.iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    joined = with_override(small_config, "scorer.service", served)
    for key, value in (("mllm.path", str(elsewhere)), ("seed", 5), ("grpo.group_size", 3)):
        config = with_override(joined, key, value)
        with connect([config]) as cluster, scorer_service([config], cluster) as own:
            assert own is None, "nothing is started for a run that joins"
        assert_equal(LocalScorer(build_engine(config)).score(request()), remote_scorer(served, config).score(request()))
    assert is_there(served)


def test_a_run_that_means_another_mllm_or_prompt_is_refused(
    served: str, small_config: RunConfig, tmp_path: Path
) -> None:
    from tests.helpers.small_mllm import small_mllm_folder

    other = with_override(small_config, "mllm.path", str(small_mllm_folder(tmp_path / "other", seed=1)))
    with pytest.raises(
        ValueError,
        match=rf"scorer\.service: {served} holds other weights, tokens or settings than mllm\.path \(weights ",
    ):
        remote_scorer(served, other).score(request())
    exact = with_override(small_config, "mllm.dtype", "float64")
    with pytest.raises(ValueError, match=rf"scorer\.service: {served} computes in float32, not in mllm\.dtype=float64"):
        remote_scorer(served, exact).score(request())


def test_a_name_that_nobody_answers_to_is_refused_before_anything_starts(
    ray_cluster: None, small_config: RunConfig
) -> None:
    from saga_ray.on_ray.cluster import connect

    config = with_override(small_config, "scorer.service", "nobody")
    with (
        connect([config]) as cluster,
        pytest.raises(ValueError, match=r"scorer\.service: no service 'nobody' runs"),
        scorer_service([config], cluster),
    ):
        pass


def test_what_a_caller_did_wrong_is_said_to_the_caller(served: str, small_config: RunConfig) -> None:
    scorer = remote_scorer(served, small_config)
    wrong = replace(request(), pairs=(replace(request().pairs[0], second=9),))
    with pytest.raises(ValueError, match=r"^pairs: pair 0 shows image 9, but the request holds 6 images"):
        scorer.score(wrong)
    # What only the replica knows comes back as its sentence: here, an answer with a placeholder.
    told = replace(request(1), answers=(("<|image_pad|>",),))
    with pytest.raises(ValueError, match=r"^answers: '<\|image_pad\|>' holds an image placeholder"):
        scorer.score(told)
    reply = scorer._handle.score.remote('{"dataset": "demo"}', "name", 1, {}).result(timeout_s=60)
    assert re.match(r"recipe: the scorer service cannot read this value", reply["refused"])


def _metrics() -> dict[str, float]:
    """Our own lines of what Prometheus reads on all nodes, labels left out."""
    import ray

    found = {}
    for node in ray.nodes():
        if node["Alive"]:
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=30) as page:
                text = page.read().decode()
            for name, labels, value in re.findall(r"^ray_(saga_ray_scorer_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
                if f'application="{NAME}"' in labels:
                    found[name] = float(value)
    return found


def test_prometheus_reads_queue_throughput_fill_malformed_share_and_memory(
    served: str, small_config: RunConfig
) -> None:
    result = remote_scorer(served, small_config).score(request())
    wanted = {"queue_tokens", "tokens_total", "busy_seconds_total", "tokens_per_second", "batch_fill"}
    wanted = {f"saga_ray_scorer_{name}" for name in wanted | {"malformed_share", "memory_bytes"}}
    for _ in range(120):  # Ray hands them on every few seconds
        found = _metrics()
        if wanted <= found.keys() and found["saga_ray_scorer_queue_tokens"] == 0:
            break
        time.sleep(0.5)
    assert wanted <= found.keys(), found
    assert found["saga_ray_scorer_tokens_total"] >= int(result.num_tokens_PG.sum())
    assert found["saga_ray_scorer_busy_seconds_total"] > 0 and found["saga_ray_scorer_tokens_per_second"] > 0
    assert 0 < found["saga_ray_scorer_batch_fill"] <= 1 and 0 <= found["saga_ray_scorer_malformed_share"] <= 1
    assert found["saga_ray_scorer_memory_bytes"] > 2**26, "a process with torch holds more"
    assert found["saga_ray_scorer_queue_tokens"] == 0
