"""What a process holds of one partition: items in flight, finished ones, bytes, and the search for a poison item."""

from __future__ import annotations

import asyncio

from sidecar.core.request import Request
from sidecar.offline.lane import OfflineLane
from sidecar.offline.offsets import Committed
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import FakeCluster, FakeDriver, generated
from tests.offline.test_lane import lane, running, until


async def killed_by(poison: str, cluster: FakeCluster) -> OfflineLane:
    """A process that ends the moment it runs this item; returns once it has ended or everything is done."""
    dead = asyncio.Event()

    async def answer(request: Request, _call: TokenCall) -> Generated:
        if poison in request.id:
            dead.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return generated()

    offline = lane(cluster, FakeDriver(answer), pending_max=10, poison_restarts=3)
    task = asyncio.create_task(offline.run(), name="lane")
    await until(cluster, lambda: dead.is_set() or cluster.everything_once())
    task.cancel()
    await asyncio.wait([task])
    return offline


async def test_an_item_that_kills_the_process_is_found_by_running_items_alone() -> None:
    cluster = FakeCluster(items=60)
    starts = 0
    while not cluster.everything_once():
        await killed_by("/0/20#", cluster)
        starts += 1
    [dead] = [out for _, out in cluster.written if out.topic == "inference.requests.dlq"]
    assert dict(dead.headers)["dlq.original.offset"] == b"20"
    assert dict(dead.headers)["dlq.error.class"] == b"poison"
    assert starts < 20


async def test_clean_ends_never_make_an_item_a_suspect() -> None:
    cluster = FakeCluster(items=1)

    async def answer(_request: Request, _call: TokenCall) -> Generated:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    for _ in range(10):
        offline = lane(cluster, FakeDriver(answer), poison_restarts=3)
        async with running(offline):
            await until(cluster, lambda offline=offline: offline.stats.executions == 1)  # type: ignore[misc]
            await offline.drain(0.0)
    assert cluster.state() == Committed(watermark=0, high=0, by_hand=True)


async def test_a_crash_before_the_first_result_is_counted() -> None:
    cluster = FakeCluster(items=1)
    await killed_by("/0/0#", cluster)
    assert cluster.state().restarts == 1


async def test_results_that_wait_for_their_commit_count_as_bytes() -> None:
    cluster = FakeCluster(items=50)
    cluster.faults.extend(["before"] * 20)

    async def answer(_request: Request, _call: TokenCall) -> Generated:
        return generated(*range(2000, 3000))

    offline = lane(cluster, FakeDriver(answer), pending_bytes_max=20_000)
    async with running(offline):
        most = 0

        def look() -> bool:
            nonlocal most
            most = max([most, *(owned_partition.bytes_held for owned_partition in offline.owned_partitions())])
            return cluster.everything_once()

        await until(cluster, look)
    assert 0 < most < 20_000 + 50 * 6_000
    assert all(owned_partition.bytes_held == 0 for owned_partition in offline.owned_partitions())
