"""Topics in memory, for what reads them from outside a group: in the place of `TopicReader` and of producers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, Self

from sidecar.batch.topic_reader import Places
from sidecar.offline.item import Headers, Record
from sidecar.settings.offline import OfflineSettings

JOBS_SETTINGS = OfflineSettings(jobs_topic="inference.jobs", progress_topic="inference.progress")
PARTITIONS = 2


class FakeTopics:
    """What stands on the topics. `read_at_most` records come at once."""

    def __init__(self, read_at_most: int = 3) -> None:
        self.records: dict[str, dict[int, list[Record]]] = {}
        self.read_at_most = read_at_most
        self.arriving: list[Record] = []  # one of them stands on its topic at each further read

    def add(
        self, topic: str, value: bytes | None, headers: Headers = (), *, partition: int = 0, **fields: Any
    ) -> Record:
        """One more record."""
        place = self.records.setdefault(topic, {number: [] for number in range(PARTITIONS)})[partition]
        defaults: dict[str, Any] = {"timestamp_ms": 1_000, "key": None}
        record = Record(
            topic=topic, partition=partition, offset=len(place), value=value, headers=headers, **(defaults | fields)
        )
        place.append(record)
        return record

    def reader(self, _settings: OfflineSettings, starts: Mapping[str, Mapping[int, int]]) -> FakeTopicReader:
        """In the place of TopicReader."""
        return FakeTopicReader(self, starts)

    async def write(self, settings: OfflineSettings, records: list[tuple[bytes, bytes]]) -> None:
        """In the place of `board.write`."""
        for key, value in records:
            self.add(settings.jobs_topic, value, key=key)

    async def ends(self, _settings: OfflineSettings, *topics: str) -> Places:
        """In the place of `topic_reader.ends`."""
        return {topic: {n: len(self.records.get(topic, {}).get(n, ())) for n in range(PARTITIONS)} for topic in topics}


class FakeTopicReader:
    """Reads as `TopicReader` does; nothing waits."""

    def __init__(self, topics: FakeTopics, starts: Mapping[str, Mapping[int, int]]) -> None:
        self._topics = topics
        self.places: Places = {
            topic: {number: starts[topic].get(number, 0) for number in range(PARTITIONS)} for topic in starts
        }
        self._ends: Places = {}

    async def __aenter__(self) -> Self:
        await self.look_at_ends()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open."""

    @property
    def at_end(self) -> bool:
        """True if everything was read that was there at the last look."""
        return all(self.places[topic][n] >= end for topic, ends in self._ends.items() for n, end in ends.items())

    async def look_at_ends(self) -> Places:
        """The ends now."""
        self._ends = await self._topics.ends(JOBS_SETTINGS, *self.places)
        return self._ends

    async def read(self, wait_s: float = 0.0) -> list[Record]:
        """The next records of each place."""
        if wait_s and self._topics.arriving:
            new = self._topics.arriving.pop(0)
            self._topics.add(new.topic, new.value, new.headers, partition=new.partition)
        found: list[Record] = []
        for topic, places in self.places.items():
            for number, at in places.items():
                there = self._topics.records.get(topic, {}).get(number, [])[at : at + self._topics.read_at_most]
                places[number] += len(there)
                found += there
        return found

    async def rest(self) -> AsyncIterator[list[Record]]:
        """What is left up to the last look."""
        while not self.at_end:
            yield await self.read()


def moved(record: Record, topic: str) -> Record:
    """The same record for another topic."""
    return replace(record, topic=topic)
