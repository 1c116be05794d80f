"""The offline lane over a fake log and a fake driver: every item ends exactly once, whatever fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from sidecar.core.errors import SettingsError, SidecarError
from sidecar.core.request import Lane, Request
from sidecar.offline.gates import ModelGates
from sidecar.offline.kafka_errors import LogError
from sidecar.offline.lane import OfflineLane
from sidecar.offline.lane_state import Cause, Phase
from sidecar.offline.offsets import Committed
from sidecar.settings.offline import OfflineSettings
from sidecar.token_call import Generated, RequestDeadError, RequestRejectedError, TokenCall
from tests.fakes.log import FakeCluster, FakeDriver, WordTokens, generated

TIMEOUT_S = 20.0
MODELS = {"tensorrt_llm": 1000, "other": 1000}


def lane(
    cluster: FakeCluster, driver: FakeDriver | None = None, gates: ModelGates | None = None, **settings: Any
) -> OfflineLane:
    defaults: dict[str, Any] = {"tick_s": 0.001, "pending_max": 50}
    return OfflineLane(
        OfflineSettings(**(defaults | settings)),
        driver or FakeDriver(),
        WordTokens(),
        MODELS,
        seed=1,
        make_log=cluster.make_log,
        gates=gates,
    )


@asynccontextmanager
async def running(offline: OfflineLane) -> AsyncIterator[asyncio.Task[None]]:
    """The lane runs; it is drained at the end, unless it ended by itself."""
    task = asyncio.create_task(offline.run(), name="lane")
    try:
        yield task
    finally:
        if not task.done():
            await asyncio.wait_for(offline.drain(0.1), TIMEOUT_S)
    await task


async def until(cluster: FakeCluster, reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not reached():
            cluster.changed.clear()
            with suppress(TimeoutError):  # some changes, in the driver, nobody notes
                await asyncio.wait_for(cluster.changed.wait(), 0.002)


def headers(cluster: FakeCluster, index: int = 0) -> dict[str, str]:
    return {name: value.decode() for name, value in cluster.written[index][1].headers}


async def test_every_item_has_one_result_on_the_partition_it_came_from() -> None:
    cluster = FakeCluster(items=300, partitions=3)
    offline = lane(cluster)
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert {number for number, _ in cluster.written} == {0, 1, 2}
    assert {outgoing.topic for _, outgoing in cluster.written} == {"inference.results"}
    assert offline.stats.items == {("done", ""): 300}
    assert (offline.stats.consumed, offline.stats.executions, offline.stats.reopens) == (300, 300, 0)
    assert offline.state == "stopped"


async def test_a_bad_record_is_a_dead_letter_byte_for_byte_and_its_neighbours_live() -> None:
    cluster = FakeCluster(items=1)
    cluster.produce(b"\xff not an item", headers=[("x-job", b"j"), ("unknown", b"\x00\x01")])
    cluster.produce(b'{"id": "2", "prompt": "two"}')
    offline = lane(cluster)
    async with running(offline):
        await until(cluster, cluster.everything_once)
    [dead] = [out for _, out in cluster.written if out.topic == "inference.requests.dlq"]
    assert (dead.key, dead.value) == (b"key", b"\xff not an item")
    assert dead.headers[:2] == (("x-job", b"j"), ("unknown", b"\x00\x01"))
    assert dict(dead.headers)["dlq.error.class"] == b"not_utf8"
    assert offline.stats.items == {("done", ""): 2, ("dlq", "not_utf8"): 1}


@pytest.mark.parametrize("seed", range(12))
async def test_faults_at_any_commit_lose_nothing_and_write_nothing_twice(seed: int) -> None:
    draw = random.Random(seed)
    cluster = FakeCluster(partitions=2)
    for number in range(200):
        cluster.produce(b'{"id": "%d", "prompt": "p"}' % number, skip=draw.choice([0, 0, 0, 1, 5]))
    cluster.seeks_fail.extend(draw.choices([False, True], weights=[2, 1], k=30))
    cluster.fetches_fail.extend(draw.choices([False, True], weights=[1, 1], k=4))
    cluster.fetch_steps = draw.choice([1, 5, 20])
    cluster.faults.extend(draw.choices([None, "before", "after", "taint"], weights=[5, 1, 1, 1], k=40))

    async def answer(_request: Request, _call: TokenCall) -> Generated:
        for _ in range(draw.randrange(12)):
            await asyncio.sleep(0)
        return generated()

    offline = lane(cluster, FakeDriver(answer), pending_max=draw.choice([1, 7, 40]))
    async with running(offline):
        await until(cluster, cluster.everything_once)
        await until(
            cluster,
            lambda: (
                not any(
                    owned_partition.in_flight + owned_partition.finished
                    for owned_partition in offline.owned_partitions()
                )
            ),
        )
    assert offline.stats.reopens > 0
    assert offline.stats.executions == 200  # work in flight survives a new opening


@pytest.mark.parametrize("seed", range(6))
async def test_two_owners_of_all_partitions_cost_time_but_never_a_duplicate(seed: int) -> None:
    cluster = FakeCluster(items=150, partitions=3)
    draw = random.Random(seed)

    async def answer(_request: Request, _call: TokenCall) -> Generated:
        for _ in range(draw.randrange(100)):
            await asyncio.sleep(0)
        return generated()

    first, second = (lane(cluster, FakeDriver(answer), pending_max=10) for _ in range(2))
    async with running(first), running(second):
        await until(cluster, lambda: first.stats.commits + second.stats.commits > 20)
        cluster.logs[draw.randrange(2)].assigned([])  # one of them learns that it was not the owner
        await until(cluster, cluster.everything_once)
    assert first.stats.fenced + second.stats.fenced > 0


@pytest.mark.parametrize("seed", range(6))
async def test_a_process_that_dies_at_any_moment_leaves_no_gap_and_no_duplicate(seed: int) -> None:
    cluster = FakeCluster(items=100, partitions=2)
    draw = random.Random(seed)
    while not cluster.everything_once():
        offline = lane(cluster, pending_max=10, poison_restarts=1000)
        task = asyncio.create_task(offline.run(), name="lane")
        for _ in range(draw.randrange(10, 200)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert cluster.everything_once()


async def test_an_item_carries_its_tenant_deadline_and_lengths_to_the_scheduler() -> None:
    cluster = FakeCluster()
    cluster.produce(
        b'{"id": "1", "prompt": "a b", "max_tokens": 9}',
        headers=[("x-tenant", b"lab"), ("x-deadline", b"2099-01-01T00:00:00Z"), ("traceparent", b"00-1-2-01")],
    )
    driver = FakeDriver()
    async with running(lane(cluster, driver)):
        await until(cluster, cluster.everything_once)
    [request] = driver.requests
    assert (request.lane, request.model, request.tenant) == (Lane.OFFLINE, "tensorrt_llm", "lab")
    assert (request.prompt_tokens, request.output_tokens_max) == (3, 9)
    assert 1e9 < request.deadline_s < 1e10


async def test_items_that_name_one_deadline_have_one_deadline() -> None:
    cluster = FakeCluster()
    for number in range(20):
        cluster.produce(b'{"id": "%d", "prompt": "a b"}' % number, headers=[("x-deadline", b"2099-01-01T00:00:00Z")])
    driver = FakeDriver()
    async with running(lane(cluster, driver)):
        await until(cluster, cluster.everything_once)
    assert len({request.deadline_s for request in driver.requests}) == 1


@pytest.mark.parametrize(
    ("error", "outcome", "reason", "attempts"),
    [
        (RequestDeadError("the engine broke", 5), "dlq", "failed", "5"),
        (RequestRejectedError("unknown_model", "no such model"), "dlq", "unknown_model", "0"),
        (RequestRejectedError("too_large", "too many tokens"), "dlq", "too_long", "0"),
        (RequestRejectedError("expired", "too late"), "expired", "expired", "0"),
        (RuntimeError("a bug of ours"), "dlq", "failed", "0"),
    ],
)
async def test_what_cannot_succeed_is_a_dead_letter_with_its_reason(
    error: Exception, outcome: str, reason: str, attempts: str
) -> None:
    async def answer(_request: Request, _call: TokenCall) -> Generated:
        raise error

    cluster = FakeCluster(items=1)
    offline = lane(cluster, FakeDriver(answer))
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert offline.stats.items == {(outcome, reason): 1}
    found = headers(cluster)
    assert (found["dlq.error.class"], found["dlq.attempts"], found["dlq.error.stage"]) == (reason, attempts, "run")
    assert (found["dlq.original.topic"], found["dlq.original.partition"]) == ("inference.requests", "0")


async def test_an_item_that_meets_a_full_queue_or_a_dead_engine_waits_and_runs_later() -> None:
    tries = iter(["queue_full", "engine_down"])

    async def answer(_request: Request, _call: TokenCall) -> Generated:
        if reason := next(tries, None):
            raise RequestRejectedError(reason, "not now", retry_after_s=0.001)
        return generated(attempts=3, resumed=2)

    cluster = FakeCluster(items=1)
    offline = lane(cluster, FakeDriver(answer))
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert offline.stats.items == {("done", ""): 1}
    assert (offline.stats.executions, offline.stats.retried) == (1, 2)
    assert b'"attempts":3,"resumed":2' in (cluster.written[0][1].value or b"")


async def test_a_result_too_large_for_kafka_is_a_dead_letter() -> None:
    async def answer(_request: Request, _call: TokenCall) -> Generated:
        return generated(*range(1000, 3000))

    cluster = FakeCluster(items=1)
    offline = lane(cluster, FakeDriver(answer), item_bytes_max=500, message_bytes_max=2000)
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert offline.stats.items == {("dlq", "result_too_large"): 1}


async def test_a_dead_letter_that_kafka_would_not_take_is_cut_and_says_so() -> None:
    cluster = FakeCluster(items=1)
    cluster.produce(b"x" * 200_000, headers=[("x-job", b"j")])
    async with running(lane(cluster, item_bytes_max=500, message_bytes_max=2000)):
        await until(cluster, cluster.everything_once)
    [dead] = [out for _, out in cluster.written if out.topic == "inference.requests.dlq"]
    assert dead.value == b"x" * 1000
    assert dict(dead.headers)["dlq.truncated"] == b"200000"
    assert dict(dead.headers)["dlq.error.class"] == b"too_large"


async def test_a_drain_makes_committed_what_is_finished_and_leaves_the_rest_to_the_next_owner() -> None:
    cluster = FakeCluster(items=10)
    never = asyncio.Event()

    async def answer(request: Request, _call: TokenCall) -> Generated:
        if "/0/4#" in request.id:
            await never.wait()
        return generated()

    offline = lane(cluster, FakeDriver(answer), tick_s=60.0)
    async with running(offline):
        await until(
            cluster, lambda: sum(owned_partition.finished for owned_partition in offline.owned_partitions()) == 9
        )
        await offline.drain(0.01)
    assert cluster.state() == Committed(watermark=4, high=10, gaps=(4,))
    async with running(lane(cluster)):
        await until(cluster, cluster.everything_once)


async def test_work_in_flight_survives_a_rebalance_that_brings_the_partition_back() -> None:
    cluster = FakeCluster(items=5)
    go_on = asyncio.Event()

    async def answer(_request: Request, _call: TokenCall) -> Generated:
        await go_on.wait()
        return generated(resumed=1)

    offline = lane(cluster, FakeDriver(answer))
    async with running(offline):
        await until(cluster, lambda: offline.stats.executions == 5)
        await cluster.logs[0].revoked()
        assert not offline.owned_partitions()[0].ready
        cluster.logs[0].assigned([0])
        go_on.set()
        await until(cluster, cluster.everything_once)
    assert offline.stats.executions == 5


async def test_a_partition_that_went_elsewhere_takes_its_work_with_it() -> None:
    cluster = FakeCluster(items=5)
    cancelled: list[str] = []

    async def answer(request: Request, _call: TokenCall) -> Generated:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(request.id)
            raise
        return generated()

    offline = lane(cluster, FakeDriver(answer))
    async with running(offline):
        await until(cluster, lambda: offline.stats.executions == 5)
        await cluster.logs[0].revoked()
        cluster.logs[0].assigned([])
        await until(cluster, lambda: len(cancelled) == 5)
        assert offline.owned_partitions() == []
    assert cluster.written == []


async def test_a_consumer_that_is_stuck_without_an_error_is_made_anew() -> None:
    cluster = FakeCluster(items=3)
    cluster.deaf = True
    offline = lane(cluster, stuck_after_s=0.01)
    async with running(offline):
        await until(cluster, lambda: len(cluster.logs) > 1)
        cluster.deaf = False
        await until(cluster, cluster.everything_once)


async def test_a_group_that_assigns_nothing_is_joined_anew() -> None:
    cluster = FakeCluster(items=3)
    cluster.silent = True
    async with running(lane(cluster, stuck_after_s=0.01)):
        await until(cluster, lambda: len(cluster.logs) > 1)
        cluster.silent = False
        await until(cluster, cluster.everything_once)


async def test_an_error_of_the_group_ends_its_consumer_though_it_has_no_partition_to_fetch() -> None:
    cluster = FakeCluster(items=3)
    cluster.silent, cluster.group_error = True, "UnknownError"
    offline = lane(cluster)
    async with running(offline):
        await until(cluster, lambda: offline.state == "waiting: UnknownError")
        cluster.silent, cluster.group_error = False, ""
        await until(cluster, cluster.everything_once)


async def test_kafka_that_is_down_at_the_start_is_waited_for() -> None:
    cluster = FakeCluster(items=3)
    cluster.down = 2
    offline = lane(cluster)
    async with running(offline):
        await until(cluster, lambda: offline.state == "waiting: no broker answers")
        await until(cluster, cluster.everything_once)
        assert offline.state == "running"


async def test_a_drain_while_kafka_is_down_ends() -> None:
    cluster = FakeCluster()
    cluster.down = 1_000_000
    async with running(lane(cluster)):
        await until(cluster, lambda: len(cluster.logs) == 2)


async def test_the_callers_clock_is_the_only_one_that_dates_the_request() -> None:
    cluster = FakeCluster(items=1)
    driver = FakeDriver()
    offline = OfflineLane(
        OfflineSettings(tick_s=0.001), driver, WordTokens(), MODELS, clock=lambda: 42.0, make_log=cluster.make_log
    )
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert driver.requests[0].arrived_s == 42.0


def waits_for(offline: OfflineLane, cause: Cause) -> Callable[[], bool]:
    return lambda: (offline.state_now.phase, offline.state_now.cause) == (Phase.WAITING, cause)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (LogError("the broker does not let us in", Cause.AUTHENTICATION), Cause.AUTHENTICATION),
        (LogError("no broker answers", Cause.UNREACHABLE), Cause.UNREACHABLE),
        (LogError("topic inference.results does not exist", Cause.TOPIC_MISSING), Cause.TOPIC_MISSING),
        (LogError("a right is missing: group sidecar", Cause.RIGHTS), Cause.RIGHTS),
        (SettingsError("kafka security: no such file: /secret"), Cause.SECRET),
    ],
)
async def test_a_consumer_that_cannot_start_is_tried_again_until_it_can(error: SidecarError, cause: Cause) -> None:
    cluster = FakeCluster(items=3)
    cluster.start_error = error
    offline = lane(cluster, look_again_s=0.005)
    async with running(offline):
        await until(cluster, lambda: len(cluster.logs) > 3 and waits_for(offline, cause)())
        assert offline.state == f"waiting: {error}"
        cluster.start_error = None
        await until(cluster, cluster.everything_once)
        assert offline.state == "running"


async def test_nothing_that_can_be_fetched_is_a_state_and_so_are_unknown_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sidecar.offline.lane.WATCH_S", 0.001)
    cluster = FakeCluster(items=2)
    offline = lane(cluster)
    async with running(offline):
        await until(cluster, cluster.everything_once)
        cluster.fetch_error = LogError("a right is missing: topic", Cause.RIGHTS)
        await until(cluster, lambda: offline.state == "waiting: nothing can be fetched: a right is missing: topic")
        cluster.fetch_error = None
        await until(cluster, lambda: offline.state == "running")
        cluster.ends_error = LogError("no broker answers", Cause.UNREACHABLE)
        await until(cluster, waits_for(offline, Cause.UNREACHABLE))
        [owned_partition] = offline.owned_partitions()
        assert (owned_partition.watermark, owned_partition.end, owned_partition.lag) == (2, None, None)
        cluster.ends_error = None
        await until(cluster, lambda: offline.state == "running" and offline.owned_partitions()[0].lag == 0)


@pytest.mark.parametrize("cause", [Cause.AUTHENTICATION, Cause.TLS])
async def test_a_connection_that_is_no_longer_let_in_is_made_anew_with_what_the_files_hold_now(
    monkeypatch: pytest.MonkeyPatch, cause: Cause
) -> None:
    monkeypatch.setattr("sidecar.offline.lane.WATCH_S", 0.001)
    cluster = FakeCluster(items=2)
    offline = lane(cluster, look_again_s=0.005)
    async with running(offline):
        await until(cluster, cluster.everything_once)
        cluster.ends_error = LogError("the broker does not let us in", cause)
        await until(cluster, lambda: len(cluster.logs) > 2 and offline.state_now.cause is cause)
        cluster.ends_error = None
        cluster.produce(b'{"id": "x", "prompt": "p"}')
        await until(cluster, cluster.everything_once)
        await until(cluster, lambda: offline.state == "running")


async def test_a_consumer_that_finds_no_broker_for_long_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.offline.lane.WATCH_S", 0.001)
    cluster = FakeCluster(items=2)
    offline = lane(cluster, stuck_after_s=0.02)
    async with running(offline):
        await until(cluster, cluster.everything_once)
        cluster.ends_error = LogError("no broker answers", Cause.UNREACHABLE)
        await until(cluster, lambda: len(cluster.logs) > 1)
        cluster.ends_error = None
        await until(cluster, lambda: offline.state == "running")


async def test_only_a_programming_error_stops_the_lane_and_says_where() -> None:
    cluster = FakeCluster(items=1)
    cluster.open_errors[0] = KeyError("a prompt of somebody")
    offline = lane(cluster)
    with pytest.raises(KeyError):
        await asyncio.wait_for(offline.run(), TIMEOUT_S)
    assert (offline.state_now.phase, offline.state_now.cause) == (Phase.STOPPED, Cause.DEFECT)
    assert offline.state.startswith("stopped: a programming error: KeyError at log.py:")
    assert "prompt" not in offline.state
