"""Topics are read from where somebody was, to their ends, and nothing is left open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from sidecar.batch import topic_reader as module
from sidecar.batch.topic_reader import TopicReader, ends
from sidecar.offline.item import Record
from sidecar.offline.kafka_errors import LogError
from sidecar.settings.offline import OfflineSettings

PLACES = [TopicPartition("results", 0), TopicPartition("results", 1)]


class FakeConsumer:
    """Partition 0 holds offsets 3 to 9, of which 8 is a control record; partition 1 is empty."""

    def __init__(self) -> None:
        self._client = self
        self.begins = {PLACES[0]: 3, PLACES[1]: 0}
        self.ends = {PLACES[0]: 10, PLACES[1]: 0}
        self.at = dict(self.begins)
        self.error: Exception | None = None
        self.stopped = False

    async def start(self) -> None:
        """Connected."""

    def assign(self, places: list[TopicPartition]) -> None:
        assert places == PLACES

    async def beginning_offsets(self, _: list[TopicPartition]) -> dict[TopicPartition, int]:
        return self.begins

    async def end_offsets(self, _: list[TopicPartition]) -> dict[TopicPartition, int]:
        return self.ends

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.at[place] = offset

    async def position(self, place: TopicPartition) -> int:
        offset: int = self.at[place]
        return offset

    async def getmany(self, *_: TopicPartition, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        assert (timeout_ms, max_records) == (200, module.FETCH_MAX)
        if self.error is not None:
            raise self.error
        place = PLACES[0]
        offsets = [each for each in range(self.at[place], min(self.at[place] + 3, 10)) if each != 8]
        self.at[place] = min(self.at[place] + 3, 10)
        fields = {"topic": "results", "partition": 0, "timestamp": 5, "key": None, "value": b"v", "headers": []}
        return {place: [SimpleNamespace(offset=each, **fields) for each in offsets]}

    async def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> FakeConsumer:
    fake = FakeConsumer()

    def made(**options: Any) -> FakeConsumer:
        assert (options["isolation_level"], options["auto_offset_reset"]) == ("read_committed", "earliest")
        return fake

    async def start(consumer: Any, _client: Any) -> None:
        await consumer.start()

    async def places(_consumer: Any, topic: str) -> list[TopicPartition]:
        return [each for each in PLACES if each.topic == topic]

    monkeypatch.setattr(module, "AIOKafkaConsumer", made)
    monkeypatch.setattr(module, "start_client", start)
    monkeypatch.setattr(module, "topic_places", places)
    return fake


async def read(starts: dict[int, int]) -> list[Record]:
    async with TopicReader(OfflineSettings(), {"results": starts}) as reader:
        found = [record async for records in reader.rest() for record in records]
        assert reader.places == {"results": {0: 10, 1: 0}}
    return found


@pytest.mark.parametrize(
    ("starts", "offsets"),
    [({}, [3, 4, 5, 6, 7, 9]), ({0: 7, 1: 0}, [7, 9]), ({0: 1}, [3, 4, 5, 6, 7, 9]), ({0: 10}, [])],
)
async def test_it_reads_from_where_one_was_and_no_further_back_than_the_log_goes(
    consumer: FakeConsumer, starts: dict[int, int], offsets: list[int]
) -> None:
    assert [record.offset for record in await read(starts)] == offsets
    assert consumer.stopped


async def test_a_failing_read_is_an_error_of_ours_and_leaves_nothing_open(consumer: FakeConsumer) -> None:
    consumer.error = KafkaError("a right is missing")
    with pytest.raises(LogError, match="a right is missing"):
        await read({})
    assert consumer.stopped


async def test_a_topic_that_cannot_be_looked_up_leaves_nothing_open(
    consumer: FakeConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def missing(*_: Any) -> list[TopicPartition]:
        raise LogError("topic results does not exist")

    monkeypatch.setattr(module, "topic_places", missing)
    with pytest.raises(LogError, match="does not exist"):
        await read({})
    assert consumer.stopped


async def test_the_ends_of_now_are_where_what_comes_will_stand(consumer: FakeConsumer) -> None:
    assert await ends(OfflineSettings(), "results") == {"results": {0: 10, 1: 0}}
    assert consumer.stopped
