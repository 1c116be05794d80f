"""Topics read from outside any group, as a read_committed reader sees them: to their ends, or as records come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from sidecar.offline.item import Record
from sidecar.offline.job_topic import topic_places
from sidecar.offline.kafka_client import record_of
from sidecar.offline.kafka_errors import call, start_client
from sidecar.offline.kafka_options import client_options
from sidecar.settings.offline import OfflineSettings

Places = dict[str, dict[int, int]]  # topic, partition, offset
FETCH_MAX = 5000  # records at once


class TopicReader:
    """Reads every partition of some topics, each from where `starts` says, or from its beginning.

    Use it in `async with`; that raises LogError if a topic does not exist or no broker answers.
    """

    def __init__(self, settings: OfflineSettings, starts: Mapping[str, Mapping[int, int]]) -> None:
        self._settings = settings
        self._starts = starts
        self._ends: dict[TopicPartition, int] = {}
        self._positions: dict[TopicPartition, int] = {}
        options: dict[str, Any] = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
        self._consumer = AIOKafkaConsumer(**client_options(settings), **options)

    async def __aenter__(self) -> Self:
        try:
            async with call(self._settings.call_timeout_s):
                await start_client(self._consumer, self._consumer._client)
                places = [place for topic in self._starts for place in await topic_places(self._consumer, topic)]
                self._consumer.assign(places)
                begins = await self._consumer.beginning_offsets(places)
                for place in places:
                    start = max(self._starts[place.topic].get(place.partition, 0), begins[place])
                    self._positions[place] = start
                    self._consumer.seek(place, start)
            await self.look_at_ends()
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    @property
    def places(self) -> Places:
        """Where the next read goes on."""
        found: Places = {topic: {} for topic in self._starts}
        for place, position in self._positions.items():
            found[place.topic][place.partition] = position
        return found

    @property
    def at_end(self) -> bool:
        """True if everything was read that was there at the last look at the ends."""
        return all(self._positions[place] >= end for place, end in self._ends.items())

    async def look_at_ends(self) -> Places:
        """The ends as they are now."""
        async with call(self._settings.call_timeout_s):
            self._ends = await self._consumer.end_offsets(list(self._positions))
        found: Places = {topic: {} for topic in self._starts}
        for place, end in self._ends.items():
            found[place.topic][place.partition] = end
        return found

    async def read(self, wait_s: float = 0.2) -> list[Record]:
        """The next records, none if none came within `wait_s`. Raises LogError."""
        async with call(self._settings.call_timeout_s):
            places = list(self._positions)
            found = await self._consumer.getmany(*places, timeout_ms=int(wait_s * 1000), max_records=FETCH_MAX)
            for place in places:
                self._positions[place] = await self._consumer.position(place)
        return [record_of(each) for records in found.values() for each in records]

    async def rest(self) -> AsyncIterator[list[Record]]:
        """What is left up to the ends of the last look, some records at a time."""
        while not self.at_end:
            yield await self.read()


async def ends(settings: OfflineSettings, *topics: str) -> Places:
    """The ends of these topics now: whoever reads from there on misses nothing that comes after."""
    async with TopicReader(settings, {topic: {} for topic in topics}) as reader:
        return await reader.look_at_ends()
