"""The driver in simulated time obeys the scheduler, catches it where it breaks a promise, and knows when to end."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest

from sidecar.core.events import Abort, Action, Arrived, Dispatch, Ending, Event, Finished, Preempt
from sidecar.core.request import DispatchKind, Lane, Request
from sidecar.inflight.batch import BatcherSettings
from sidecar.inflight.profile import Profile
from sidecar.sim.driver import Observer, SimulatedDriver
from sidecar.sim.machine import Machine
from sidecar.sim.progress import BrokenPromiseError, RequestProgress
from sidecar.sim.workloads import SimulatedRequest

PROFILE = Profile(name="round", overhead_ms=10.0, decode_row_ms=0.0, prefill_token_ms=0.0)


class Decider:
    """Answers each arrival with what `wanted` says, and everything else with nothing."""

    def __init__(self, wanted: Callable[[Request], list[Action]]) -> None:
        self.wanted = wanted

    def handle(self, event: Event, now_s: float) -> list[Action]:
        del now_s
        if isinstance(event, Arrived):
            return self.wanted(event.request)
        request_id = getattr(event, "request_id", "")
        return [Finished(request_id=request_id, outcome=Ending.COMPLETE)] if request_id else []

    def next_deadline_s(self) -> float | None:
        return None


class Outcomes(Observer):
    """Keeps what became of each request, and when."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, float]] = []

    def finished(self, progress: RequestProgress) -> None:
        self.seen.append((progress.request.id, progress.outcome, round(progress.finished_s, 3)))


def dispatch(request: Request, output_tokens: int | None = None) -> Dispatch:
    kind = DispatchKind.ONLINE if request.lane is Lane.ONLINE else DispatchKind.BACKFILL
    most = request.output_tokens_max if output_tokens is None else output_tokens
    return Dispatch(request_id=request.id, engine="e0", kind=kind, output_tokens=most, slots=1, queue_wait_s=0.0)


def over(request: Request) -> Finished:
    return Finished(request_id=request.id, outcome=Ending.COMPLETE)


def job(name: str, tokens: int, lane: Lane = Lane.ONLINE, at_s: float = 0.0) -> SimulatedRequest:
    request = Request(
        id=name, lane=lane, model="tensorrt_llm", arrived_s=at_s, prompt_tokens=5, output_tokens_max=tokens
    )
    return SimulatedRequest(request=request, output_tokens=tokens)


def driver(wanted: Callable[[Request], list[Action]], *jobs: SimulatedRequest) -> tuple[SimulatedDriver, Outcomes]:
    shape, outcomes = BatcherSettings(max_batch_size=2, max_num_tokens=512, max_seq_len=4096), Outcomes()
    made = SimulatedDriver(scheduler=Decider(wanted), machines={"e0": Machine(shape, PROFILE)}, observer=outcomes)
    made.begin(iter(jobs))
    return made, outcomes


def test_a_request_ends_when_its_engine_has_given_its_last_token() -> None:
    made, outcomes = driver(lambda request: [dispatch(request)], job("a", 3), job("b", 5, at_s=1.0))
    made.run(inf)
    assert outcomes.seen == [("a", "ended", 0.03), ("b", "ended", 1.05)]
    assert made.alive == {}


def test_a_run_of_the_online_requests_leaves_offline_ones_running() -> None:
    made, outcomes = driver(lambda request: [dispatch(request)], job("a", 50), job("item", 2000, Lane.OFFLINE))
    made.run(0.1)
    made.answer_online(100.0)
    assert outcomes.seen == [("a", "ended", 0.5)]
    assert list(made.alive) == ["item"]
    assert made.now_s < 2.0
    made.answer_online(100.0)
    assert made.now_s < 2.0, "nobody is left to wait for"


def test_a_run_of_the_online_requests_ends_at_its_limit() -> None:
    made, _ = driver(lambda request: [dispatch(request)], job("a", 1000))
    made.run(0.1)
    made.answer_online(3.0)
    assert (made.now_s, list(made.alive)) == (3.0, ["a"])


def test_a_caller_that_goes_away_before_its_turn_costs_the_engine_nothing() -> None:
    made, outcomes = driver(lambda _: [], job("a", 3))
    made.at(0.5, lambda: made.cancel("a"))
    made.run(inf)
    assert [name for name, _, _ in outcomes.seen] == ["a"]
    assert made.machines["e0"].iterations == 0


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (lambda request: [dispatch(request), dispatch(request)], "a dispatch of what runs"),
        (lambda request: [dispatch(request, output_tokens=99)], "more tokens than were asked for"),
        (lambda request: [Preempt(request_id=request.id, engine="e0")], "a stop of what does not run"),
        (lambda request: [Abort(request_id=request.id, engine="e0")], "an abort of what does not run"),
        (lambda _: [Preempt(request_id="nobody", engine="e0")], "a request that nobody knows"),
        (lambda request: [over(request), dispatch(request)], "a dispatch of what is over"),
    ],
)
def test_a_scheduler_that_breaks_a_promise_is_caught_in_the_act(
    wanted: Callable[[Request], list[Action]], why: str
) -> None:
    made, _ = driver(wanted, job("a", 3))
    with pytest.raises(BrokenPromiseError):
        made.run(inf)
    assert made.now_s < 0.01, why


def test_more_dispatches_than_slots_are_caught() -> None:
    made, _ = driver(lambda request: [dispatch(request)], *(job(name, 50) for name in "abc"))
    with pytest.raises(BrokenPromiseError, match="oversubscribes an engine of 2 slots"):
        made.run(inf)
