"""What is taken in: in any order, bounded, nothing forgotten, and nothing taken twice."""

from __future__ import annotations

import asyncio

from sidecar.core.request import Request
from sidecar.offline.gates import ModelGates
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import FakeCluster, FakeDriver, generated
from tests.offline.test_lane import lane, running, until


async def test_one_slow_item_does_not_hold_back_those_behind_it() -> None:
    cluster = FakeCluster(items=2000)
    go_on = asyncio.Event()

    async def answer(request: Request, _call: TokenCall) -> Generated:
        if "/0/3#" in request.id:
            await go_on.wait()
        return generated()

    async with running(lane(cluster, FakeDriver(answer), pending_max=20)):
        await until(cluster, lambda: len(cluster.written) == 1999)
        assert (cluster.state().watermark, cluster.state().gaps) == (3, (3,))
        go_on.set()
        await until(cluster, cluster.everything_once)


async def test_intake_is_bounded_while_nothing_finishes() -> None:
    cluster = FakeCluster(items=500)
    go_on = asyncio.Event()

    async def answer(_request: Request, _call: TokenCall) -> Generated:
        await go_on.wait()
        return generated()

    driver = FakeDriver(answer)
    offline = lane(cluster, driver, pending_max=20)
    async with running(offline):
        await until(cluster, lambda: len(driver.requests) == 20)
        [owned_partition] = offline.owned_partitions()
        assert (owned_partition.in_flight, owned_partition.position, owned_partition.oldest_ms) == (20, 20, 1_000)
        go_on.set()
        await until(cluster, cluster.everything_once)


async def test_items_of_a_paused_model_wait_and_the_others_go_on() -> None:
    cluster = FakeCluster()
    for number in range(20):
        model = b"other" if number % 2 else b"tensorrt_llm"
        cluster.produce(b'{"id": "%d", "prompt": "p"}' % number, headers=[("x-model", model)])
    gates = ModelGates()
    offline = lane(cluster, gates=gates)
    gates.turn("other", may_take_more=False)
    async with running(offline):
        await until(cluster, lambda: len(cluster.written) == 10)
        assert offline.stats.executions == 10
        gates.turn("other", may_take_more=True)
        await until(cluster, cluster.everything_once)
