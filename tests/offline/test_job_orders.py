"""Orders about jobs: items hold to them while they wait and while they run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.core.request import Request
from sidecar.core.settings import SchedulerSettings
from sidecar.core.tenant_queue import TenantQueue
from sidecar.core.tracked_request import TrackedRequest
from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.gates import ModelGates
from sidecar.offline.item import ItemRules, deadline_of
from sidecar.offline.job_orders import (
    JobField,
    JobOrders,
    JobPausedError,
    JobState,
    decoded_key,
    encoded_key,
)
from sidecar.offline.owned_partition import FinishedItem, LaneStats
from sidecar.offline.runner import ItemRuns
from sidecar.offline.spans import KafkaSpans
from sidecar.settings.offline import OfflineSettings
from sidecar.token_call import Generated, RequestRejectedError, TokenCall
from tests.fakes.log import FakeDriver, WordTokens, generated
from tests.offline.builders import SETTINGS, of_job, record

NIGHTLY = ("lab", "nightly")


def give(orders: JobOrders, field: JobField, value: Any, job: tuple[str, str] = NIGHTLY) -> None:
    orders.apply(encoded_key(job, field), json.dumps({"value": value}).encode())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - whatever is ready runs first
            await asyncio.sleep(0)


def runs(orders: JobOrders, driver: FakeDriver, settings: OfflineSettings = SETTINGS) -> ItemRuns:
    rules = ItemRules.of(settings, {"tensorrt_llm": 1000}, None)
    spans = KafkaSpans(settings, None, lambda: 0.0)
    return ItemRuns(settings, rules, driver, WordTokens(), spans, LaneStats(), lambda: 0.0, ModelGates(), orders)


class Engine:
    """Counts who runs; nobody ends before `go`."""

    def __init__(self) -> None:
        self.running = 0
        self.begun = 0
        self.go = asyncio.Event()
        self.driver = FakeDriver(self._answer)

    async def _answer(self, _request: Request, _call: TokenCall) -> Generated:
        self.running, self.begun = self.running + 1, self.begun + 1
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        return generated(7)


def reasons(finished: list[FinishedItem]) -> list[tuple[str, str]]:
    return [(each.outcome, each.reason) for each in finished]


async def test_what_runs_of_a_cancelled_job_is_stopped_and_the_others_run_on() -> None:
    orders, engine = JobOrders(), Engine()
    subject = runs(orders, engine.driver)
    tasks = [asyncio.create_task(subject.run(of_job(n, job)), name=job) for n, job in enumerate(["nightly", "weekly"])]
    await until(lambda: engine.running == 2)
    give(orders, JobField.STATE, "cancelled")
    await until(lambda: engine.running == 1)
    engine.go.set()
    assert reasons([await task for task in tasks]) == [("cancelled", "cancelled"), ("done", "")]


async def test_a_cancelled_item_says_whose_it_was_and_keeps_its_bytes() -> None:
    orders = JobOrders()
    give(orders, JobField.STATE, "cancelled")
    finished = await runs(orders, FakeDriver()).run(of_job(3, "nightly"))
    headers = dict(finished.outgoing.headers)
    assert headers["dlq.error.message"] == b"job 'nightly' was cancelled"
    assert json.loads(headers["dlq.error.openai"])["code"] == "batch_cancelled"
    assert finished.outgoing.value == of_job(3, "nightly").value


async def test_an_item_that_comes_after_the_cancel_never_reaches_the_engine() -> None:
    orders, engine = JobOrders(), Engine()
    give(orders, JobField.STATE, "cancelled")
    finished = await runs(orders, engine.driver).run(of_job(0, "nightly"))
    assert (finished.outcome, engine.begun) == ("cancelled", 0)


async def test_a_paused_item_leaves_the_engine_and_runs_anew_when_resumed() -> None:
    orders, engine = JobOrders(), Engine()
    task = asyncio.create_task(runs(orders, engine.driver).run(of_job(0, "nightly")), name="item")
    await until(lambda: engine.running == 1)
    give(orders, JobField.STATE, "paused")
    await until(lambda: engine.running == 0)
    engine.go.set()
    give(orders, JobField.STATE, "running")
    finished = await task
    assert (finished.outcome, engine.begun) == ("done", 2)


async def test_a_paused_job_can_be_cancelled() -> None:
    orders, engine = JobOrders(), Engine()
    give(orders, JobField.STATE, "paused")
    task = asyncio.create_task(runs(orders, engine.driver).run(of_job(0, "nightly")), name="item")
    give(orders, JobField.STATE, "cancelled")
    assert ((await task).outcome, engine.begun) == ("cancelled", 0)


async def test_two_orders_before_the_item_hears_the_first_one_do_no_harm() -> None:
    orders, engine = JobOrders(), Engine()
    task = asyncio.create_task(runs(orders, engine.driver).run(of_job(0, "nightly")), name="item")
    await until(lambda: engine.running == 1)
    for state in ("paused", "running", "paused", "cancelled"):
        give(orders, JobField.STATE, state)
    assert (await task).outcome == "cancelled"


async def test_no_item_begins_before_the_orders_are_known() -> None:
    orders, engine = JobOrders(known=False), Engine()
    engine.go.set()
    subject = runs(orders, engine.driver)
    tasks = [asyncio.create_task(subject.run(each), name="item") for each in (of_job(0, "nightly"), record(1))]
    give(orders, JobField.STATE, "cancelled")
    assert engine.begun == 0
    orders.all_read()
    assert sorted(reasons([await task for task in tasks])) == [("cancelled", "cancelled"), ("done", "")]


async def test_an_item_without_a_job_obeys_nobody() -> None:
    orders = JobOrders()
    async with orders.hold(None):
        give(orders, JobField.STATE, "cancelled")
    assert orders.deadline(None) is None


async def test_a_timeout_of_somebody_else_is_passed_on() -> None:
    orders = JobOrders()
    with pytest.raises(TimeoutError, match="the engine's"):
        async with orders.hold(NIGHTLY):
            raise TimeoutError("the engine's")


async def test_a_real_cancel_stays_one() -> None:
    orders, engine = JobOrders(), Engine()
    task = asyncio.create_task(runs(orders, engine.driver).run(of_job(0, "nightly")), name="item")
    await until(lambda: engine.running == 1)
    task.cancel()
    give(orders, JobField.STATE, "cancelled")
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_holding_names_the_order_that_ended_it() -> None:
    orders = JobOrders()
    give(orders, JobField.STATE, "paused")
    with pytest.raises(JobPausedError):
        async with orders.hold(NIGHTLY):
            await asyncio.Event().wait()
    give(orders, JobField.STATE, "cancelled")
    with pytest.raises(DeadItemError) as caught:
        async with orders.hold(NIGHTLY):
            await asyncio.Event().wait()
    assert caught.value.reason is DeadReason.CANCELLED


def test_the_last_order_holds_and_a_removed_record_takes_it_back() -> None:
    orders = JobOrders()
    key = encoded_key(NIGHTLY, JobField.DEADLINE)
    give(orders, JobField.DEADLINE, "2030-01-01T00:00:00Z")
    assert orders.deadline(NIGHTLY) == deadline_of("2030-01-01T00:00:00Z")
    give(orders, JobField.DEADLINE, "tomorrow")
    assert orders.deadline(NIGHTLY) is None
    give(orders, JobField.DEADLINE, "2031-01-01T00:00:00Z")
    orders.apply(key, None)
    assert orders.deadline(NIGHTLY) is None


async def test_what_is_no_order_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    orders = JobOrders()
    foreign = [None, b"", b"\xff", b'["lab","nightly"]', b'["lab","nightly","color"]', b'{"a": 1}', b"[" * 100_000]
    for key in foreign:
        orders.apply(key, b'{"value": "cancelled"}')
    for value in (None, b"", b"x", b"[]", b'{"value": 7}', b'{"value": "stopped"}', b'{"value": {}}'):
        orders.apply(encoded_key(NIGHTLY, JobField.STATE), value)
    give(orders, JobField.MANIFEST, "cancelled")
    assert orders.held_back() == []
    assert caplog.text.count("no order") == len(foreign)


async def test_orders_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.offline.job_orders.ORDERS_MAX", 3)
    orders = JobOrders()
    for number in range(5):
        give(orders, JobField.STATE, "cancelled", ("lab", str(number)))
    assert [job for job, _ in orders.held_back()] == [("lab", str(number)) for number in (2, 3, 4)]


def test_a_key_is_read_as_it_was_written() -> None:
    for job in (NIGHTLY, ("ä", 'j"\\,[]'), ("", "")):
        for field in JobField:
            assert decoded_key(encoded_key(job, field)) == (job, field)


async def test_a_later_deadline_brings_back_what_was_refused_as_too_late() -> None:
    orders, deadlines = JobOrders(), list[float]()
    later = "2999-01-01T00:00:00Z"

    async def answer(request: Request, _: TokenCall) -> Generated:
        deadlines.append(request.deadline_s)
        if len(deadlines) == 1:
            give(orders, JobField.DEADLINE, later)
            raise RequestRejectedError("expired", "too late")
        return generated(7)

    item = record(0, headers=(*of_job(0, "nightly").headers, ("x-deadline", b"2020-01-01T00:00:00Z")))
    finished = await runs(orders, FakeDriver(answer)).run(item)
    assert finished.outcome == "done"
    assert deadlines[1] > deadlines[0]


async def test_an_earlier_deadline_brings_nothing_back() -> None:
    orders = JobOrders()
    give(orders, JobField.DEADLINE, "2019-01-01T00:00:00Z")

    async def answer(_: Request, __: TokenCall) -> Generated:
        raise RequestRejectedError("expired", "too late")

    finished = await runs(orders, FakeDriver(answer)).run(of_job(0, "nightly"))
    assert (finished.outcome, finished.reason) == ("expired", "expired")


def test_nobody_stands_behind_anybody_before_somebody_says_so() -> None:
    assert [JobOrders().behind(job) for job in (None, NIGHTLY)] == [0, 0]


@pytest.mark.parametrize(
    ("ordered", "behind"),
    [
        ({"a": "low"}, {"a": 1, "b": 0, "c": 0}),
        ({"a": "high"}, {"a": 0, "b": 1, "c": 1}),
        ({"a": "high", "b": "low"}, {"a": 0, "b": 2, "c": 1}),
        ({"a": "high", "b": "high"}, {"a": 0, "b": 0, "c": 1}),
        ({"a": "normal", "b": "urgent", "c": 7}, {"a": 0, "b": 0, "c": 0}),
    ],
)
def test_a_priority_is_how_many_others_stand_before_it(ordered: dict[str, Any], behind: dict[str, int]) -> None:
    orders = JobOrders()
    for job in ("a", "b", "c"):
        give(orders, JobField.PRIORITY, "high", ("lab", job))
        give(orders, JobField.PRIORITY, None, ("lab", job))
    for job, priority in ordered.items():
        give(orders, JobField.PRIORITY, priority, ("lab", job))
    assert {job: orders.behind(("lab", job)) for job in behind} == behind


async def test_an_item_of_a_job_that_goes_first_stands_before_one_that_came_earlier() -> None:
    orders, requests = JobOrders(), list[Request]()

    async def answer(request: Request, _: TokenCall) -> Generated:
        requests.append(request)
        return generated(7)

    subject = runs(orders, FakeDriver(answer))
    give(orders, JobField.PRIORITY, "high")
    for offset, job in enumerate(["weekly", "weekly", "nightly"]):
        await subject.run(of_job(offset, job))
    queue = TenantQueue(SchedulerSettings())
    for number, request in enumerate(requests):
        queue.push(TrackedRequest(request, number, 0.0))
    head = queue.head()
    assert head is not None
    assert head.request is requests[2]


def test_a_job_is_running_unless_somebody_says_otherwise() -> None:
    assert JobOrders().state(NIGHTLY) is JobState.RUNNING
