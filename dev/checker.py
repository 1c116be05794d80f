"""Counts, from outside, what became of every item: results, dead letters, lost, duplicated.

Independent on purpose: confluent-kafka instead of aiokafka, and not one line of the sidecar. Reads read_committed, and
compares source offsets: each record of the requests topic below the watermark must have exactly one result or dead
letter that names it in its headers. The watermark is the group's plain committed offset (the metadata are not read:
confluent-kafka 2.16.1 over-reads them); above it, an offset may have one or none, never two.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

Source = tuple[int, int]  # (partition, offset) of the requests topic
TIMEOUT_S = 30.0
PASSING = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError._WAIT_COORD,
)


class CheckerError(Exception):
    """The topics could not be read to their ends, so nothing can be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicCount:
    """What the topics hold. `lost` and `duplicated` list (partition, offset) of the requests topic."""

    source_offsets: int  # records of the requests topic below the watermark
    above_watermark: int  # records not yet committed in order; some of them may have results
    results: int  # for records below the watermark, like `dead`
    dead: int
    early: int  # results and dead letters above the watermark: done, while an item before them is not
    lost: list[Source]
    duplicated: list[Source]
    foreign: list[Source] = field(default_factory=list)  # results that name an offset which holds no item
    ended_by: Counter[str] = field(default_factory=Counter)
    dead_reasons: Counter[str] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """True if every item below the watermark has exactly one outcome."""
        return not (self.lost or self.duplicated or self.foreign)


def check(
    bootstrap_servers: str,
    group: str,
    *,
    requests: str = "inference.requests",
    results: str = "inference.results",
    dead_letters: str = "inference.requests.dlq",
) -> TopicCount:
    """Reads the three topics from beginning to end. Raises CheckerError if a partition cannot be read to its end."""
    watermarks = _watermarks(bootstrap_servers, group, requests)
    ended_by: Counter[str] = Counter()
    dead_reasons: Counter[str] = Counter()
    results_of: list[Source] = []
    dead_of: list[Source] = []
    items = {_own(message) for message in records(bootstrap_servers, requests)}
    for message in records(bootstrap_servers, results):
        results_of.append(_source(message, "x-source-partition", "x-source-offset"))
        ended_by[_ended_by(message)] += 1
    for message in records(bootstrap_servers, dead_letters):
        dead_of.append(_source(message, "dlq.original.partition", "dlq.original.offset"))
        dead_reasons[_header(message, "dlq.error.class")] += 1
    outcomes = Counter(results_of + dead_of)
    below = {source for source in items if source[1] < watermarks.get(source[0], 0)}
    return TopicCount(
        source_offsets=len(below),
        above_watermark=len(items) - len(below),
        results=sum(source in below for source in results_of),
        dead=sum(source in below for source in dead_of),
        early=sum(source in items and source not in below for source in outcomes),
        lost=sorted(source for source in below if not outcomes[source]),
        duplicated=sorted(source for source, count in outcomes.items() if count > 1),
        foreign=sorted(source for source in outcomes if source not in items),
        ended_by=ended_by,
        dead_reasons=dead_reasons,
    )


def is_finished(bootstrap_servers: str, group: str, requests: str = "inference.requests") -> bool:
    """True if every item of the requests topic is below its partition's watermark."""
    watermarks = _watermarks(bootstrap_servers, group, requests)
    with _consumer(bootstrap_servers) as consumer:
        ends = {part: _end(consumer, requests, part) for part in watermarks}
    return all(end <= watermarks[part] for part, end in ends.items())


def _watermarks(bootstrap_servers: str, group: str, topic: str) -> dict[int, int]:
    """The committed offset of each partition; 0 where the group has none."""
    with _consumer(bootstrap_servers, group) as consumer:
        partitions = [TopicPartition(topic, part) for part in _partitions(consumer, topic)]
        found = _patiently(lambda: consumer.committed(partitions, timeout=TIMEOUT_S))
        return {each.partition: max(0, each.offset) for each in found}


def _patiently(ask: Callable[[], list[TopicPartition]]) -> list[TopicPartition]:
    """The answer; errors that pass (a coordinator that is not there yet) are waited out."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if (not error.args[0].retriable() and error.args[0].code() not in PASSING) or time.monotonic() > deadline_s:
                raise CheckerError(str(error)) from error
            time.sleep(0.1)


def records(bootstrap_servers: str, topic: str) -> Iterator[Message]:
    """Every committed record of the topic, up to the last stable offsets."""
    with _consumer(bootstrap_servers) as consumer:
        left = set(_partitions(consumer, topic))
        consumer.assign([TopicPartition(topic, part, OFFSET_BEGINNING) for part in left])
        deadline_s = time.monotonic() + TIMEOUT_S
        while left:
            messages = consumer.consume(1000, timeout=0.1)  # it waits for all 1000, or for as long as it may
            if messages:
                deadline_s = time.monotonic() + TIMEOUT_S
            elif time.monotonic() > deadline_s:
                raise CheckerError(
                    f"{topic}: nothing came for {TIMEOUT_S:.0f} s, partitions {sorted(left)} are not read"
                )
            for message in messages:
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
                elif not error.retriable():
                    raise CheckerError(f"{topic}: {error}")


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    metadata = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
    if metadata.error is not None:
        raise CheckerError(f"{topic}: {metadata.error}")
    return sorted(metadata.partitions)


def _end(consumer: Consumer, topic: str, partition: int) -> int:
    return int(consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_S)[1])


def _consumer(bootstrap_servers: str, group: str = "checker") -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": group,  # never joined: only read, and assigned by hand
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )


def _own(message: Message) -> Source:
    partition, offset = message.partition(), message.offset()
    if partition is None or offset is None:
        raise CheckerError("a record without a place")
    return partition, offset


def _source(message: Message, partition: str, offset: str) -> Source:
    return int(_header(message, partition)), int(_header(message, offset))


def _header(message: Message, name: str) -> str:
    """The last header of this name: an item may bring headers of the same names with it."""
    values = [value for key, value in _pairs(message) if key == name]
    if not values:
        raise CheckerError(f"{message.topic()}/{message.partition()}/{message.offset()} has no header {name}")
    return values[-1].decode()


def _pairs(message: Message) -> list[tuple[str, bytes]]:
    headers: Any = message.headers()  # its type hint also allows a dict, which only producers take
    return [(key, value or b"") for key, value in headers or []]


def _ended_by(message: Message) -> str:
    return str(json.loads(message.value() or b"{}").get("sidecar", {}).get("ended_by", "unknown"))
