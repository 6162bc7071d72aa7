"""The queue in front of a frozen MLLM: what shares a pass, what is computed once, and what nobody hears of."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Sequence

import pytest

from saga_ray.scorer.queue import Job, TokenQueue


class Slowly:
    """Computes when it is let; remembers which jobs were computed together."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.together: list[list[str]] = []

    def __call__(self, jobs: Sequence[Job]) -> list[str]:
        assert self.let.wait(30)
        self.together.append([job.name for job in jobs])
        if any(job.work == "bad" for job in jobs):
            raise ValueError(f"one of {len(jobs)} is bad")
        return [f"{job.work} done" for job in jobs]


def _asked(jobs: Sequence[Job]) -> tuple[Slowly, list]:
    """Submit all of them behind one that is being computed, then let them go."""
    slowly = Slowly()
    queue = TokenQueue(slowly)
    first = queue.submit(Job("first", 1, "x"))
    while queue.num_tokens and not queue._running:
        time.sleep(0.001)
    futures = [queue.submit(job) for job in jobs]
    assert queue.num_tokens == 1 + sum(job.tokens for job in jobs)
    slowly.let.set()
    assert first.result(30) == "x done"
    for future in futures:
        future.exception(30)
    assert slowly.together.pop(0) == ["first"]
    return slowly, futures


def test_jobs_of_one_group_share_a_pass_up_to_the_budget_of_the_oldest() -> None:
    jobs = [Job(n, tokens, n, group, budget=10) for n, tokens, group in (("a", 4, "g"), ("b", 1, "h"), ("c", 5, "g"), ("d", 4, "g"))]  # fmt: skip
    slowly, futures = _asked(jobs)
    assert slowly.together == [["a", "c"], ["b"], ["d"]]
    assert [future.result() for future in futures] == ["a done", "b done", "c done", "d done"]


def test_a_job_larger_than_the_budget_is_computed_alone() -> None:
    slowly, _ = _asked([Job("a", 50, "a", "g", budget=10), Job("b", 1, "b", "g", budget=10)])
    assert slowly.together == [["a"], ["b"]]


def test_jobs_without_a_group_are_never_joined() -> None:
    slowly, _ = _asked([Job(name, 1, name, None, budget=10) for name in "abc"])
    assert slowly.together == [["a"], ["b"], ["c"]]


def test_the_same_question_asked_again_is_computed_once() -> None:
    slowly = Slowly()
    queue = TokenQueue(slowly)
    one = queue.submit(Job("a", 3, "a"))
    assert queue.submit(Job("a", 3, "a")) is one, "while it waits or is computed"
    assert queue.num_tokens == 3
    slowly.let.set()
    assert one.result(30) == "a done"
    assert queue.submit(Job("a", 3, "a")) is one, "and afterwards"
    assert slowly.together == [["a"]]


def test_nobody_hears_of_a_neighbours_mistake() -> None:
    slowly, futures = _asked([Job(name, 1, "bad" if name == "b" else name, "g", budget=10) for name in "abc"])
    assert slowly.together == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert (futures[0].result(), futures[2].result()) == ("a done", "c done")
    with pytest.raises(ValueError, match="one of 1 is bad"):
        futures[1].result()


def test_a_failed_question_may_be_asked_again() -> None:
    slowly, (failed,) = _asked([Job("a", 1, "bad")])
    assert failed.exception() is not None
    queue = TokenQueue(slowly)
    assert queue.submit(Job("b", 1, "bad")).exception(30) is not None
    assert queue.submit(Job("b", 1, "good")).result(30) == "good done"


def test_a_computation_that_takes_too_long_is_told() -> None:
    slowly = Slowly()
    queue = TokenQueue(slowly)
    assert queue.stuck_s() == 0
    future = queue.submit(Job("a", 1, "a", limit_s=0.05))
    time.sleep(0.2)
    assert queue.stuck_s() > 0.05
    slowly.let.set()
    future.result(30)
    for _ in range(1000):
        if not queue.num_tokens:
            break
        time.sleep(0.001)
    assert queue.stuck_s() == 0 and queue.is_working()


def test_only_the_latest_results_are_remembered() -> None:
    queue = TokenQueue(lambda jobs: [0] * len(jobs))
    for number in range(200):
        queue.submit(Job(str(number), 1, None)).result(30)
    assert len(queue._known) < 40


def _settled(queue: TokenQueue) -> None:
    """Until the thread has put away what it computed."""
    for _ in range(5000):
        if not queue.num_jobs:
            return
        time.sleep(0.001)
    raise AssertionError("still at work")


def test_what_is_remembered_is_bounded_in_bytes_and_holds_the_latest() -> None:
    queue = TokenQueue(lambda jobs: [bytes(job.work) for job in jobs], size=len, remembered_bytes=1000)
    for number in range(9):
        queue.submit(Job(str(number), 1, 300)).result(30)
        _settled(queue)
    assert list(queue._known) == ["6", "7", "8"]
    large = queue.submit(Job("large", 1, 5000))
    large.result(30)
    _settled(queue)
    assert list(queue._known) == ["large"], "a result larger than the bound is there for who asks again"
    assert queue.submit(Job("large", 1, 5000)) is large


@pytest.mark.parametrize("work", ["fine", "bad"])
def test_a_request_is_let_go_once_it_is_answered(work: str) -> None:
    class Request:
        """Something that can be watched."""

    def compute(jobs: Sequence[Job]) -> list[str]:
        if any(job.group == "bad" for job in jobs):
            raise ValueError("bad")
        return ["done" for _ in jobs]

    queue, request = TokenQueue(compute), Request()
    seen = weakref.ref(request)
    queue.submit(Job("a", 1, request, work)).exception(30)
    del request
    _settled(queue)
    gc.collect()
    assert seen() is None


def test_jobs_tried_again_after_a_joint_failure_have_their_own_time() -> None:
    """Three of 0.2 s each and a failure of 0.2 s before them: none takes 0.5 s."""
    at_most = []

    def compute(jobs: Sequence[Job]) -> list[str]:
        time.sleep(0.2)
        at_most.append(queue.stuck_s())
        if len(jobs) > 1:
            raise ValueError("one is bad")
        return ["done"]

    gate = threading.Event()
    queue = TokenQueue(lambda jobs: [gate.wait(30)] if jobs[0].name == "first" else compute(jobs))
    queue.submit(Job("first", 1, None))
    while not queue._running:
        time.sleep(0.001)
    futures = [queue.submit(Job(name, 1, None, "g", budget=10, limit_s=0.5)) for name in "abc"]
    gate.set()
    assert [future.result(30) for future in futures] == ["done"] * 3
    assert at_most == [0.0] * 4


def test_a_queue_says_whom_it_holds_and_whether_it_advances() -> None:
    slowly = Slowly()
    queue = TokenQueue(slowly)
    assert not queue.is_advancing() and not queue.holds("a")
    queue.submit(Job("a", 1, "a", limit_s=0.3))
    last = queue.submit(Job("b", 1, "b", limit_s=30))
    assert queue.is_advancing() and queue.holds("a") and queue.holds("b") and not queue.holds("c")
    time.sleep(0.4)
    assert not queue.is_advancing(), "what is being computed takes too long"
    slowly.let.set()
    last.result(30)
    _settled(queue)
    assert not queue.is_advancing() and not queue.holds("b"), "nothing is left to do"
    slowly.let.clear()
    loading = queue.submit(Job("c", 1, "c"))
    while not queue._running:
        time.sleep(0.001)
    assert not queue.is_advancing(), "nobody knows how long this may take"
    slowly.let.set()
    loading.result(30)
