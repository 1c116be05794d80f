"""What is taken in: in any order, bounded, nothing forgotten, and nothing taken twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.request import Request
from sidecar.offline.gates import ModelGates
from sidecar.offline.intake import Intake
from sidecar.offline.item import Record
from sidecar.offline.kafka_errors import LogError, PositionLostError
from sidecar.offline.lane_state import Cause
from sidecar.offline.offsets import Committed
from sidecar.offline.owned_partition import LaneStats, OwnedPartition
from sidecar.offline.spans import KafkaSpans
from sidecar.settings.offline import OfflineSettings
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import FakeCluster, FakeDriver, generated
from tests.offline.builders import NOTHING_DONE, SETTINGS, owned, record, runs
from tests.offline.test_lane import lane, running, until


async def test_one_slow_item_does_not_hold_back_those_behind_it() -> None:
    cluster = FakeCluster(items=500)
    go_on = asyncio.Event()

    async def answer(request: Request, _call: TokenCall) -> Generated:
        if "/0/3#" in request.id:
            await go_on.wait()
        return generated()

    async with running(lane(cluster, FakeDriver(answer), pending_max=20)):
        await until(cluster, lambda: len(cluster.written) == 499)
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


class FakeSource:
    """Gives what a test wants, batch by batch, and notes what it was asked; then the intake ends."""

    def __init__(self, *batches: list[Record] | LogError) -> None:
        self.batches = [*batches]
        self.closing = asyncio.Event()
        self.asked: list[tuple[list[int], int]] = []
        self.sought: list[tuple[int, int]] = []
        self.at: dict[int, int] = {}
        self.seek_error: LogError | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    def seek(self, partition: int, offset: int) -> None:
        if self.seek_error is not None:
            self.closing.set()
            raise self.seek_error
        self.sought.append((partition, offset))

    async def fetch(self, partitions: Iterable[int], records_max: int, wait_s: float) -> list[Record]:
        del wait_s
        self.asked.append(([*partitions], records_max))
        self.meanwhile()
        batch = self.batches.pop(0)
        if not self.batches:
            self.closing.set()
        if isinstance(batch, LogError):
            raise batch
        for each in batch:
            self.at[each.partition] = each.offset + 1
        return batch

    async def position(self, partition: int) -> int:
        return self.at.get(partition, 0)


class Taking:
    """An intake over these partitions."""

    def __init__(
        self, *partitions: OwnedPartition, settings: OfflineSettings = SETTINGS, driver: FakeDriver | None = None
    ) -> None:
        self.partitions = {each.number: each for each in partitions}
        self.stats = LaneStats()
        self.troubles: list[LogError | None] = []
        self.intake = Intake(
            settings,
            runs(driver, settings, self.stats),
            KafkaSpans(settings, None, lambda: 0.0),
            self.stats,
            owned_partitions=self.partitions,
            clock=lambda: 7.0,
            on_trouble=self.troubles.append,
        )

    async def take(self, source: FakeSource) -> None:
        """Take all batches; what was taken has run to its end."""
        async with asyncio.timeout(5), asyncio.TaskGroup() as items:
            await self.intake.run(source, items, source.closing)


async def test_what_was_fetched_runs_and_leaves_its_result_in_its_partition() -> None:
    first, second = owned(number=0), owned(number=1)
    taking = Taking(first, second)
    await taking.take(FakeSource([record(0), record(0, partition=1), record(1)]))
    assert ([*first.finished], [*second.finished]) == ([0, 1], [0])
    assert first.running == {}
    assert (taking.stats.consumed, taking.stats.executions, taking.troubles) == (3, 3, [None])
    assert first.finished[0].outgoing.topic == "inference.results"


async def test_offsets_that_the_broker_passed_over_do_not_hold_the_watermark_back() -> None:
    partition = owned()
    source = FakeSource([])
    source.at[0] = 9  # control records alone
    await Taking(partition).take(source)
    assert partition.progress is not None
    assert partition.progress.after(()) == Committed(watermark=9, high=9)
    assert partition.fetched_s == 7.0


async def test_no_more_is_taken_than_has_room_and_the_rest_waits_in_memory() -> None:
    settings = replace(SETTINGS, pending_max=2)
    partition = owned(settings=settings)
    go_on = asyncio.Event()

    async def answer(_request: Request, _call: TokenCall) -> Generated:
        await go_on.wait()
        return generated()

    taking = Taking(partition, settings=settings, driver=FakeDriver(answer))
    source = FakeSource([record(offset) for offset in range(5)])
    task = asyncio.create_task(taking.take(source), name="take")
    while not partition.backlog:  # noqa: ASYNC110 - a state, not an event
        await asyncio.sleep(0)
    assert ([*partition.taken], [each.offset for each in partition.backlog]) == ([0, 1], [2, 3, 4])
    assert source.asked == [([0], 2)]
    go_on.set()
    await task


async def test_a_partition_is_asked_for_only_while_it_has_room() -> None:
    full, free = owned(number=0), owned(number=1)
    full.counted = False
    source = FakeSource([])
    await Taking(full, free).take(source)
    assert source.asked == [([1], SETTINGS.pending_max)]


async def test_what_came_before_an_intake_that_stops_runs_on_and_nothing_more_is_taken() -> None:
    taking, source = Taking(owned()), FakeSource([record(0)])
    taking.intake.stopping = True
    source.closing.set()
    await taking.take(source)
    assert source.asked == []


async def test_after_a_fetch_that_failed_each_partition_is_sought_before_the_next() -> None:
    first, second = owned(number=0), owned(Committed(watermark=4, high=4), number=1)
    error = LogError("one partition cannot be read", Cause.RIGHTS)
    source, taking = FakeSource(error, [record(0)]), Taking(first, second)
    await taking.take(source)
    assert source.sought == [(0, 0), (1, 4)]
    assert taking.troubles == [error, None]
    assert [*first.finished] == [0]
    assert not first.astray


async def test_a_partition_that_cannot_be_sought_now_is_not_read() -> None:
    partition = owned()
    partition.astray = True
    source = FakeSource([record(0)])
    source.seek_error = LogError("not assigned")
    await Taking(partition).take(source)
    assert source.asked == []
    assert partition.astray


@pytest.mark.parametrize(("named", "broken"), [([1], [1]), ([], [0, 1])])
async def test_a_lost_position_breaks_the_partitions_that_it_names_or_all_that_were_asked_for(
    named: list[int], broken: list[int]
) -> None:
    partitions = owned(number=0), owned(number=1)
    error = PositionLostError("out of range", named)
    await Taking(*partitions).take(FakeSource(error))
    assert [each.number for each in partitions if each.broken is error and each.wake.is_set()] == broken


async def test_records_that_were_fetched_for_an_earlier_opening_are_not_taken() -> None:
    partition, lost = owned(number=0), owned(number=1)
    taking, source = Taking(partition, lost), FakeSource([record(0), record(0, partition=1)])

    def reopen() -> None:
        partition.begin(NOTHING_DONE, 2, SETTINGS)
        del taking.partitions[1]

    source.meanwhile = reopen
    await taking.take(source)
    assert (partition.taken, lost.taken, partition.astray) == ({}, {}, True)


async def test_an_item_that_is_in_flight_over_a_new_opening_does_not_run_twice() -> None:
    partition = owned()
    partition.take(record(0))  # it runs, from before the opening
    taking = Taking(partition)
    await taking.take(FakeSource([record(0), record(1)]))
    assert taking.stats.executions == 1
    assert [*partition.finished] == [1]
    assert partition.progress is not None
    assert partition.progress.pending == {0, 1}  # its result may be committed now


async def test_what_is_committed_already_is_passed_over() -> None:
    partition = owned(Committed(watermark=1, high=4, gaps=(1,)))
    taking = Taking(partition)
    await taking.take(FakeSource([record(offset) for offset in range(1, 6)]))
    assert [*partition.finished] == [1, 4, 5]


async def test_an_item_that_has_to_run_alone_is_held_until_that_is_committed() -> None:
    settings = replace(SETTINGS, poison_restarts=3)
    partition = owned(Committed(watermark=0, high=0, restarts=3), settings)
    taking = Taking(partition, settings=settings)
    source = FakeSource([record(0), record(1)])
    await taking.take(source)
    assert (partition.held, [each.offset for each in partition.backlog]) == (record(0), [1])
    assert (partition.running, taking.stats.executions, source.asked) == ({}, 0, [([0], 1)])
    assert partition.wake.is_set()


async def test_the_item_that_ran_alone_at_two_unclean_ends_is_a_dead_letter_and_does_not_run() -> None:
    settings = replace(SETTINGS, poison_restarts=3)
    partition = owned(Committed(watermark=0, high=0, restarts=5, suspect=0), settings)
    taking = Taking(partition, settings=settings)
    await taking.take(FakeSource([record(0)]))
    assert (taking.stats.executions, partition.held) == (0, None)
    assert (partition.finished[0].outcome, partition.finished[0].reason) == ("dlq", "poison")
    message = dict(partition.finished[0].outgoing.headers)["dlq.error.message"]
    assert message == b"the process ended 2 times while this item ran alone"


@pytest.mark.parametrize(
    ("changes", "woken"), [({}, False), ({"results_per_commit": 2}, True), ({"pending_bytes_max": 200}, True)]
)
async def test_a_commit_comes_before_its_tick_once_many_results_or_bytes_wait(
    changes: dict[str, Any], woken: bool
) -> None:
    settings = replace(SETTINGS, **changes)
    partition = owned(settings=settings)
    await Taking(partition, settings=settings).take(FakeSource([record(0), record(1)]))
    assert partition.wake.is_set() is woken


async def test_a_result_of_an_item_that_went_elsewhere_is_left_out() -> None:
    partition = owned()

    async def answer(_request: Request, _call: TokenCall) -> Generated:
        partition.running.pop(0)  # another task has the item now
        return generated()

    await Taking(partition, driver=FakeDriver(answer)).take(FakeSource([record(0)]))
    assert partition.finished == {}
