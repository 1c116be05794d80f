"""What a process holds of one partition: items in flight, finished ones, bytes, and the search for a poison item."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.request import Request
from sidecar.offline.item import Record
from sidecar.offline.kafka_errors import LogError
from sidecar.offline.lane import OfflineLane
from sidecar.offline.offsets import Committed
from sidecar.offline.owned_partition import OwnedPartition
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import FakeCluster, FakeDriver, generated
from tests.offline.builders import NOTHING_DONE, SETTINGS, delivered, finished, of_job, owned, record
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


def test_there_is_room_only_while_the_partition_is_open_counted_and_ours() -> None:
    settings = replace(SETTINGS, pending_max=5, pending_bytes_max=1000)
    assert owned(None).room(settings) == 0  # not opened
    partition = owned(settings=settings)
    assert partition.room(settings) == 5
    delivered(partition, record(0), record(1))
    assert partition.room(settings) == 3
    partition.counted = False
    assert partition.room(settings) == 0
    partition.counted, partition.broken = True, LogError("the position is lost")
    assert partition.room(settings) == 0
    partition.broken = None
    partition.finish(0, finished(record(0), b"x" * 1000))
    assert partition.room(settings) == 0  # in bytes
    partition.let_go(0)
    partition.leave()
    assert partition.room(settings) == 0


def test_a_span_of_offsets_bounds_what_is_taken_behind_one_slow_item() -> None:
    settings = replace(SETTINGS, pending_max=5, span_max=10)
    partition = owned(settings=settings)
    delivered(partition, record(0), record(8))
    assert partition.room(settings) == 1
    delivered(partition, record(9))
    assert partition.room(settings) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["take", "finish", "let go"]), st.binary(max_size=9)), max_size=40
    )
)
def test_bytes_and_jobs_are_those_of_what_is_held_whatever_happens_to_it(steps: list[tuple[int, str, bytes]]) -> None:
    partition = owned()
    for offset, step, value in steps:
        if step == "take" and offset not in partition.taken:
            partition.take(replace(of_job(offset, f"job {offset % 2}"), value=value))
        elif step == "finish" and offset in partition.taken:
            partition.finish(offset, finished(partition.taken[offset], value))
        elif step == "let go":
            partition.let_go(offset)
        taken = [*partition.taken.values()]
        assert partition.finished.keys() <= partition.taken.keys()
        sources = sum(len(each.value or b"") + len("keyx-tenantlabx-jobjob 0") for each in taken)
        assert partition.bytes_held == sources + sum(each.outgoing.size for each in partition.finished.values())
        assert partition.jobs == Counter(("lab", f"job {each.offset % 2}") for each in taken)


async def forever() -> None:
    await asyncio.Event().wait()


async def test_an_item_that_is_let_go_does_not_run_on() -> None:
    partition = owned()
    delivered(partition, record(3))
    task = partition.running[3] = asyncio.create_task(forever(), name="item")
    partition.let_go(3)
    await asyncio.wait([task])
    assert task.cancelled()
    assert (partition.taken, partition.running) == ({}, {})
    partition.let_go(3)  # a second time is nothing


def troubled(partition: OwnedPartition) -> OwnedPartition:
    """Something was fetched and not taken, and then something failed."""
    partition.backlog.append(record(3))
    partition.astray, partition.broken = True, LogError("unclear")
    return partition


def held(partition: OwnedPartition, source: Record) -> OwnedPartition:
    """This item waits until it is committed that it runs alone."""
    partition.held = source
    return partition


def test_a_new_opening_keeps_what_is_in_flight_and_forgets_what_was_committed_meanwhile() -> None:
    partition = troubled(owned())
    delivered(partition, record(0), record(1), record(2))
    partition.finish(1, finished(record(1)))
    partition.begin(Committed(watermark=0, high=2, gaps=(0,)), 2, SETTINGS)
    assert [*partition.taken] == [0, 2]
    assert (partition.finished, [*partition.backlog], partition.astray, partition.broken) == ({}, [], False, None)
    assert partition.progress is not None
    assert (partition.opening, partition.progress.expected) == (2, 0)


def test_a_result_from_before_a_new_opening_waits_for_its_record() -> None:
    partition = owned()
    delivered(partition, record(0), record(1))
    partition.finish(1, finished(record(1)))
    partition.begin(NOTHING_DONE, 2, SETTINGS)
    progress = partition.progress
    assert progress is not None
    assert partition.committable(progress) == {}
    progress.deliver(0)
    assert partition.committable(progress) == {}
    progress.deliver(1)
    assert [*partition.committable(progress)] == [1]


def test_the_item_that_was_to_run_alone_is_delivered_anew_by_the_next_opening() -> None:
    partition = held(owned(), record(0))
    delivered(partition, record(0))
    partition.begin(NOTHING_DONE, 2, SETTINGS)
    assert (partition.held, partition.taken, partition.bytes_held) == (None, {}, 0)


def test_after_too_many_unclean_ends_items_run_one_at_a_time_up_to_what_can_have_been_taken() -> None:
    settings = replace(SETTINGS, poison_restarts=3, pending_max=10)
    fine = owned(Committed(watermark=4, high=7, gaps=(4,), restarts=2), settings)
    assert (fine.solo, fine.room(settings)) == (False, 9)  # the gap is still to come
    partition = owned(Committed(watermark=4, high=7, gaps=(4,), restarts=3), settings)
    assert (partition.solo, partition.room(settings)) == (True, 1)
    delivered(partition, record(4))
    assert partition.room(settings) == 0
    assert partition.progress is not None
    partition.progress.skip_to(16)
    assert partition.solo
    partition.progress.skip_to(17)
    assert not partition.solo


def test_what_finds_a_poison_item_is_committed_before_the_item_runs() -> None:
    settings = replace(SETTINGS, poison_restarts=3)
    partition = owned(settings=settings)
    partition.counted = False
    assert partition.marked(NOTHING_DONE, settings) == Committed(watermark=0, high=0, restarts=1)
    partition.counted = True
    held(partition, record(0))
    marked = partition.marked(NOTHING_DONE, settings)
    assert (marked.restarts, marked.suspect) == (3, 0)
    assert partition.marked(marked, settings) == marked  # told once
    partition.leave()
    assert partition.marked(marked, settings) == NOTHING_DONE  # this end is a clean one


@pytest.mark.parametrize(
    ("suspect", "restarts", "culprit"), [(5, 5, True), (5, 4, False), (6, 9, False), (None, 9, False)]
)
def test_only_the_item_that_ran_alone_at_two_unclean_ends_is_the_culprit(
    suspect: int | None, restarts: int, culprit: bool
) -> None:
    settings = replace(SETTINGS, poison_restarts=3)
    state = Committed(watermark=5, high=5, restarts=restarts, suspect=suspect)
    assert owned(state, settings).is_culprit(5, settings) is culprit
    assert not owned(None).is_culprit(5, settings)


def test_what_is_not_read_yet_is_of_the_job_that_alone_was_seen() -> None:
    partition = owned()
    partition.end = 10
    assert partition.unread(("lab", "nightly")) == 0  # nothing says whose it is
    delivered(partition, of_job(0, "nightly"), of_job(1, "nightly"))
    assert partition.unread(("lab", "nightly")) == 8
    assert partition.unread(("lab", "other")) == 0
    delivered(partition, record(2))  # of no job
    assert partition.unread(("lab", "nightly")) == 0
    partition.let_go(2)
    assert partition.unread(("lab", "nightly")) == 7


def test_what_is_not_known_is_none_and_the_oldest_item_is_that_of_the_records() -> None:
    view = owned(None).view()
    assert (view.watermark, view.gaps, view.end, view.lag, view.oldest_ms, view.ready) == (*[None] * 5, False)
    partition = owned(Committed(watermark=4, high=7, gaps=(4, 5)))
    partition.end = 9
    assert partition.view().lag is None  # no broker told it
    partition.end_known = True
    delivered(partition, record(4, timestamp_ms=-1), record(5, timestamp_ms=70), record(7, timestamp_ms=60))
    view = partition.view()
    assert (view.watermark, view.gaps, view.end, view.lag, view.oldest_ms) == (4, 2, 9, 5, 60)
    partition.end = 2  # a log that was made anew is shorter than what is committed
    assert partition.view().lag == 0


def test_what_is_committed_is_no_longer_to_be_done() -> None:
    partition = owned()
    progress = partition.progress
    assert progress is not None
    delivered(partition, record(0), record(1))
    partition.install(progress, Committed(watermark=1, high=1))
    assert (partition.committed, progress.pending) == (Committed(watermark=1, high=1), {1})
