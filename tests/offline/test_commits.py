"""One transaction per tick: what its topic refuses becomes a dead letter, and its neighbours are committed."""

from __future__ import annotations

import random

import pytest

from sidecar.core.request import Request
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.lane_state import Cause, Phase
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import FakeCluster, FakeDriver, generated
from tests.offline.test_lane import lane, running, until

RESULTS, DEAD_LETTERS = "inference.results", "inference.requests.dlq"


def long_for(*offsets: int) -> FakeDriver:
    """Items at these offsets have results of some 9,000 bytes."""

    async def answer(request: Request, _call: TokenCall) -> Generated:
        long = any(f"/{offset}#" in request.id for offset in offsets)
        return generated(*(random.Random(1).choices(range(1000, 9999), k=1800) if long else (7, 8)))

    return FakeDriver(answer)


def dead(cluster: FakeCluster) -> list[Outgoing]:
    return [outgoing for _, outgoing in cluster.written if outgoing.topic == DEAD_LETTERS]


async def test_a_result_beyond_a_known_limit_is_a_dead_letter_without_a_failed_transaction() -> None:
    cluster = FakeCluster(items=30)
    cluster.limits, cluster.known_limits = {RESULTS: 4_000}, True
    offline = lane(cluster, long_for(7, 21))
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert offline.stats.items == {("done", ""): 28, ("dlq", "result_too_large"): 2}
    assert (cluster.refusals, offline.stats.reopens, offline.stats.executions) == (0, 0, 30)
    [first, _] = [dict(each.headers) for each in dead(cluster)]
    assert b"topic inference.results takes at most 4000 bytes in a batch; the result has " in first["dlq.error.message"]


@pytest.mark.parametrize("bad", [(0,), (29,), (7, 21), (3, 4, 5), tuple(range(30))])
async def test_a_result_beyond_an_unknown_limit_is_found_and_its_neighbours_are_committed(bad: tuple[int, ...]) -> None:
    cluster = FakeCluster(items=30)
    cluster.limits = {RESULTS: 4_000}
    offline = lane(cluster, long_for(*bad))
    async with running(offline):
        await until(cluster, cluster.everything_once)
        await until(cluster, lambda: offline.state == "running")
    assert offline.stats.items["dlq", "result_too_large"] == len(bad)
    assert offline.stats.items["done", ""] == 30 - len(bad)
    assert offline.stats.executions == 30
    assert {dict(each.headers)["dlq.original.offset"] for each in dead(cluster)} == {str(at).encode() for at in bad}


async def test_a_result_that_breaks_another_rule_of_its_topic_is_a_dead_letter_that_says_so() -> None:
    cluster = FakeCluster(items=9)
    cluster.refuses = lambda outgoing: b'"custom_id":"4"' in (outgoing.value or b"") and outgoing.topic == RESULTS
    offline = lane(cluster)
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert offline.stats.items == {("done", ""): 8, ("dlq", "result_refused"): 1}


@pytest.mark.parametrize("known", [True, False])
async def test_a_dead_letter_that_its_topic_does_not_take_is_cut(known: bool) -> None:
    cluster = FakeCluster(items=3)
    noise = random.Random(1).randbytes(30_000)
    cluster.produce(b"\xff" + noise, headers=[("x-job", b"j")])
    cluster.limits, cluster.known_limits = {DEAD_LETTERS: 20_000 if known else 100_000}, known
    if not known:
        cluster.limits = {DEAD_LETTERS: 70_000}
        cluster.produce(b"\xff" + noise * 3)
    offline = lane(cluster)
    async with running(offline):
        await until(cluster, cluster.everything_once)
    cut = dead(cluster)[-1]
    assert (b"\xff" + noise * 3).startswith(cut.value or b"-")
    assert 15_000 < len(cut.value or b"") < cluster.limits[DEAD_LETTERS]
    assert dict(cut.headers)["dlq.truncated"] == (b"30001" if known else b"90001")
    assert offline.stats.items["dlq", "not_utf8"] == (1 if known else 2)


async def test_a_dead_letter_with_huge_headers_keeps_its_reason_and_its_place() -> None:
    cluster = FakeCluster(items=3)
    noise = random.Random(1).randbytes(30_000)
    cluster.produce(b"\xff", headers=[("h", noise), ("dlq.original.offset", b"77")])
    cluster.limits, cluster.known_limits = {DEAD_LETTERS: 20_000}, True
    async with running(lane(cluster)):
        await until(cluster, cluster.everything_once)
    [bare] = dead(cluster)
    assert (bare.key, bare.value) == (b"", b"")
    assert dict(bare.headers)["dlq.original.offset"] == b"3"
    assert dict(bare.headers)["dlq.error.class"] == b"not_utf8"
    assert all(name.startswith("dlq.") for name, _ in bare.headers)


async def test_an_item_that_no_topic_takes_in_any_shape_waits_alone_and_is_tried_now_and_then() -> None:
    cluster = FakeCluster(items=3)
    cluster.produce(b"\xff")
    for number in range(3, 9):
        cluster.produce(b'{"id": "%d", "prompt": "p"}' % number)
    cluster.limits = {DEAD_LETTERS: 10}
    offline = lane(cluster, look_again_s=0.02)
    async with running(offline):
        await until(cluster, lambda: len(cluster.written) == 9 and bool(offline.state_now.detail))
        assert (offline.state_now.phase, offline.state_now.cause) == (Phase.DEGRADED, Cause.RECORD_REFUSED)
        assert "topic inference.requests.dlq refused it" in offline.state
        assert "not even the shortest dead letter of offset 3" in offline.state
        assert cluster.state().gaps == (3,)
        refusals = cluster.refusals
        await until(cluster, lambda: cluster.refusals > refusals + 2)  # it is tried again
        cluster.limits.clear()
        await until(cluster, cluster.everything_once)
        await until(cluster, lambda: offline.state == "running")


async def test_what_is_told_of_jobs_holds_up_its_partition_if_its_topic_refuses_it_and_says_so() -> None:
    cluster = FakeCluster()
    cluster.produce(b'{"id": "1", "prompt": "p"}', headers=[("x-job", b"j")])
    cluster.limits = {"inference.progress": 10}
    offline = lane(cluster, progress_topic="inference.progress", look_again_s=0.01)
    async with running(offline):
        await until(cluster, lambda: offline.state_now.cause is Cause.RECORD_REFUSED)
        assert "topic inference.progress takes no such record" in offline.state
        cluster.limits.clear()
        await until(cluster, cluster.everything_once)


async def test_a_job_with_a_name_beyond_all_measure_is_not_told_and_stops_nothing() -> None:
    cluster = FakeCluster()
    cluster.produce(b'{"id": "1", "prompt": "p"}', headers=[("x-job", b"j" * 300_000)])
    cluster.produce(b'{"id": "2", "prompt": "p"}', headers=[("x-job", b"short"), ("x-tenant", b"t" * 300_000)])
    cluster.limits = {"inference.progress": 100_000}
    offline = lane(cluster, progress_topic="inference.progress", look_again_s=0.01)
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert (cluster.refusals, cluster.progress()) == (0, [])


@pytest.mark.parametrize("seed", range(6))
async def test_refused_records_and_faults_at_any_commit_lose_nothing_and_write_nothing_twice(seed: int) -> None:
    draw = random.Random(seed)
    cluster = FakeCluster(items=120, partitions=2)
    cluster.limits = {RESULTS: 4_000}
    cluster.known_limits = draw.random() < 0.3
    cluster.faults.extend(draw.choices([None, "before", "after", "taint"], weights=[5, 1, 1, 1], k=40))
    bad = draw.sample(range(60), k=8)
    offline = lane(cluster, long_for(*bad), pending_max=draw.choice([7, 40]))
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert offline.stats.executions == 120
    assert len(dead(cluster)) == 16  # of each partition
