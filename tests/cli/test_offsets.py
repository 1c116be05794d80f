"""Offsets of the group: what a person sees of them, and what a reset writes, and when it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.errors import InvalidProducerEpoch, KafkaError, ProducerFenced, UnknownError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cli import offsets
from sidecar.cli.offsets import WRITE_TRIES, GroupActiveError, PartitionPlace, reset
from sidecar.core.errors import SettingsError
from sidecar.offline.offsets import Committed
from sidecar.settings.offline import OfflineSettings

SETTINGS = OfflineSettings(group="g")
FINE = PartitionPlace(partition=0, committed=Committed(watermark=9, high=9), begin=5, end=50, offset=9)
LOST = PartitionPlace(partition=1, committed=None, begin=5, end=51, problem="the group has no offset here")


@pytest.mark.parametrize(
    ("offset", "metadata", "problem"),
    [
        (9, "", ""),
        (5, "", ""),
        (50, "", ""),
        (-1, "", "the group has no offset here"),
        (4, "", "the log holds 5 to 50"),
        (51, "", "the log holds 5 to 50"),
        (9, Committed(watermark=9, high=51, gaps=(9,)).encode(), "items up to 51 are done, and the log holds 5 to 50"),
        (9, "bitset:00", "the metadata committed at offset 9 is not this project's"),
    ],
)
def test_a_place_says_why_no_sidecar_can_work_from_it(offset: int, metadata: str, problem: str) -> None:
    place = offsets._place(3, OffsetAndMetadata(offset, metadata), 5, 50)
    assert place.problem.startswith(problem)
    assert bool(place.problem) == bool(problem)
    assert (place.partition, place.offset, place.begin, place.end) == (3, offset if offset >= 0 else None, 5, 50)


@given(st.sets(st.integers(0, 60), max_size=40), st.integers(0, 100))
def test_what_is_done_above_the_watermark_is_what_a_plain_lag_counts_as_open(done: set[int], watermark: int) -> None:
    state = Committed(watermark=watermark, high=watermark).with_done({watermark + each for each in done} or {watermark})
    place = PartitionPlace(partition=0, committed=state, begin=0, end=1000)
    assert place.done_above == sum(state.is_done(each) for each in range(state.watermark, state.high))
    assert PartitionPlace(partition=0, committed=None, begin=0, end=9).done_above == 0


class Group:
    """What a reset finds and writes."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *places: PartitionPlace, members: int = 0, late: int = 0
    ) -> None:
        """What is written shows after it was looked for `late` times."""
        self.written: dict[int, int] = {}
        self.asked = self.looked = 0

        async def show(_: OfflineSettings) -> list[PartitionPlace]:
            self.looked += bool(self.written)
            seen = self.written if self.looked > late else {}
            return [replace(each, offset=seen.get(each.partition, each.offset)) for each in places]

        async def write(_: OfflineSettings, partition: int, offset: int) -> None:
            self.written[partition] = offset

        async def refuse(settings: OfflineSettings) -> None:
            self.asked += 1
            if members:
                raise GroupActiveError(f"group {settings.group} has {members} members; stop them first")

        monkeypatch.setattr(offsets, "show", show)
        monkeypatch.setattr(offsets, "_write", write)
        monkeypatch.setattr(offsets, "_refuse_if_active", refuse)


@pytest.mark.parametrize(
    ("to", "partitions", "written"),
    [
        ("earliest", (), {0: 5, 1: 5}),
        ("latest", (), {0: 50, 1: 51}),
        ("7", (), {0: 7, 1: 7}),
        ("latest", (1,), {1: 51}),
        ("50", (0,), {0: 50}),
        ("51", (1,), {1: 51}),
    ],
)
async def test_a_reset_writes_where_it_was_told_to_and_nowhere_else(
    to: str, partitions: tuple[int, ...], written: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(monkeypatch, FINE, LOST)
    assert await reset(SETTINGS, to, partitions) == written == group.written


async def test_a_reset_is_over_when_who_asks_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "SEEN_AGAIN_S", 0.0)
    group = Group(monkeypatch, FINE, LOST, late=3)
    await reset(SETTINGS, "earliest")
    assert group.looked == 4


async def test_a_group_that_works_from_what_is_committed_is_not_reset_under_its_eyes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = Group(monkeypatch, FINE, LOST, members=2)
    for partitions in ((), (0,), (0, 1)):
        with pytest.raises(GroupActiveError, match="group g has 2 members; stop them first"):
            await reset(SETTINGS, "earliest", partitions)
    assert group.written == {}


async def test_a_partition_from_which_nobody_can_work_is_reset_while_the_group_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = Group(monkeypatch, FINE, LOST, members=2)
    assert await reset(SETTINGS, "earliest", (1,)) == group.written == {1: 5}
    assert group.asked == 0


@pytest.mark.parametrize(("to", "partitions"), [("4", ()), ("51", ()), ("52", (1,)), ("earliest", (2,)), ("7", (0, 9))])
async def test_nothing_is_written_if_one_target_is_outside_of_its_log(
    to: str, partitions: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(monkeypatch, FINE, LOST)
    with pytest.raises(SettingsError, match=f"--to {to}: partition|--partition {max(partitions, default=0)}: "):
        await reset(SETTINGS, to, partitions)
    assert (group.written, group.asked) == ({}, 0)


class FakeProducer:
    """One transaction; `fails` are what the next ones raise."""

    def __init__(self, log: list[Any], fails: list[KafkaError], **options: Any) -> None:
        self._log, self._fails = log, fails
        log.append(options["transactional_id"])

    async def __aenter__(self) -> FakeProducer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._log.append("stopped")

    def transaction(self) -> FakeProducer:
        return self

    async def send_offsets_to_transaction(self, found: dict[TopicPartition, Any], group: str) -> None:
        if self._fails:
            raise self._fails.pop(0)
        self._log.append((found, group))


Producing = Callable[..., list[Any]]


@pytest.fixture
def producing(monkeypatch: pytest.MonkeyPatch) -> Producing:
    """Producers that fail like this; and what they did."""

    def make(*fails: KafkaError) -> list[Any]:
        log: list[Any] = []
        left = [*fails]
        monkeypatch.setattr(offsets, "AIOKafkaProducer", lambda **options: FakeProducer(log, left, **options))
        return log

    return make


async def test_an_offset_is_written_through_the_partitions_own_transactional_id(producing: Producing) -> None:
    log = producing()
    await offsets._write(SETTINGS, 3, 17)
    source = TopicPartition("inference.requests", 3)
    assert log[0] == "sidecar.g.inference.requests.3"
    assert log[1] == ({source: OffsetAndMetadata(17, "")}, "g")  # without gaps, as Kafka's own tools write it
    assert set(log[2:]) == {"stopped"}


def at_the_end(cause: KafkaError) -> KafkaError:
    """What aiokafka raises for an answer that it does not expect at the end of a transaction."""
    error = KafkaError("Unexpected error during batch delivery")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("fenced", [ProducerFenced(), InvalidProducerEpoch(), at_the_end(UnknownError())])
async def test_a_sidecar_that_looks_at_the_same_moment_only_delays_the_reset(
    producing: Producing, fenced: KafkaError
) -> None:
    log = producing(*[fenced] * (WRITE_TRIES - 1))
    await offsets._write(SETTINGS, 3, 17)
    assert log.count("sidecar.g.inference.requests.3") == WRITE_TRIES


async def test_a_reset_that_is_always_fenced_or_fails_otherwise_says_so(producing: Producing) -> None:
    producing(*[ProducerFenced()] * WRITE_TRIES)
    with pytest.raises(ProducerFenced):
        await offsets._write(SETTINGS, 3, 17)
    log = producing(KafkaError("no broker"))
    with pytest.raises(KafkaError, match="no broker"):
        await offsets._write(SETTINGS, 3, 17)
    assert log.count("sidecar.g.inference.requests.3") == 1
