"""What the newest results and dead letters say is done counts, also where the broker says less."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError

from sidecar.offline import outcomes
from sidecar.offline.kafka_errors import PositionLostError
from sidecar.offline.offsets import Committed
from sidecar.offline.outcomes import DEAD_NAMES, RESULT_NAMES, remembered
from sidecar.settings.offline import OfflineSettings

REQUESTS, RESULTS, DEAD = "inference.requests", "inference.results", "inference.requests.dlq"
STATE = Committed(watermark=4, high=6, gaps=(4,))


@dataclass
class FakeTopics:
    """What is visible on the topics of results and dead letters: records by offset, with gaps for markers."""

    results: dict[int, Any] = field(default_factory=dict)
    dead: dict[int, Any] = field(default_factory=dict)
    forbidden: bool = False
    reads: list[tuple[str, int]] = field(default_factory=list)  # (topic, from which offset), one for each block
    _client: Any = field(default_factory=lambda: SimpleNamespace(bootstrap=None))
    _at: int = 0

    def _of(self, place: TopicPartition) -> dict[int, Any]:
        return self.results if place.topic == RESULTS else self.dead

    async def start(self) -> None:
        """Connected."""

    async def stop(self) -> None:
        """Gone."""

    def assign(self, places: list[TopicPartition]) -> None:
        assert [place.partition for place in places] == [2]

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        if self.forbidden:
            raise TopicAuthorizationFailedError(places[0].topic)
        return {place: max(self._of(place), default=-2) + 2 for place in places}

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.reads.append((place.topic, offset))
        self._at = offset

    async def position(self, _place: TopicPartition) -> int:
        return self._at

    async def getmany(self, place: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        assert timeout_ms > 0
        end = self._at + 500
        found = [self._of(place)[offset] for offset in range(self._at, end) if offset in self._of(place)]
        self._at = end
        return {place: found}


def record(at: int, source: int, names: tuple[str, ...] = RESULT_NAMES, **other: str) -> Any:
    """The outcome of one item, `source`, at the offset `at` of its topic."""
    stated = {"topic": REQUESTS, "partition": "2", "offset": str(source), "group": "sidecar"} | other
    headers = [(name, b"999") for name in names] + [
        (name, stated[key].encode()) for name, key in zip(names, stated, strict=True)
    ]
    return SimpleNamespace(offset=at, value=b"long", headers=headers)


def results(*sources: int) -> dict[int, Any]:
    """One transaction for each: a record and a marker."""
    return {2 * at: record(2 * at, source) for at, source in enumerate(sources)}


async def remember(monkeypatch: pytest.MonkeyPatch, topics: FakeTopics, state: Committed = STATE) -> Committed:
    monkeypatch.setattr(outcomes, "AIOKafkaConsumer", lambda **_options: topics)
    settings = OfflineSettings(bootstrap_servers="localhost:9", group="sidecar")
    return await remembered(settings, 2, state)


async def test_what_the_broker_remembers_is_believed_after_a_look_at_the_newest_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topics = FakeTopics(results=results(*range(100), 5))
    assert await remember(monkeypatch, topics) is STATE
    assert topics.reads == [(RESULTS, 202 - outcomes.BLOCK)]


async def test_each_newer_outcome_is_done(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    topics = FakeTopics(results=results(0, 1, 2, 3, 5, 6, 7, 9), dead={0: record(0, 8, DEAD_NAMES)})
    assert await remember(monkeypatch, topics) == Committed(watermark=4, high=10, gaps=(4,))
    assert caplog.messages == [
        "partition 2: the broker forgot what was committed above 4: 4 outcomes are newer, their items do not run again"
    ]


async def test_the_look_goes_back_as_far_as_the_broker_forgot(monkeypatch: pytest.MonkeyPatch) -> None:
    topics = FakeTopics(results=results(*range(4), *range(5, 3000), 4))
    assert await remember(monkeypatch, topics) == Committed(watermark=3000, high=3000)
    assert len(topics.reads) < 8


async def test_outcomes_before_one_that_is_done_are_of_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person has set the offset back to 0: the items up to 50 run a second time, and 3 was the first."""
    state = Committed(watermark=0, high=4, gaps=(0, 1, 2))
    assert await remember(monkeypatch, FakeTopics(results=results(*range(51), 3)), state) is state


@pytest.mark.parametrize(
    "other", [{"topic": "others"}, {"partition": "1"}, {"group": "others"}, {"offset": "-1"}, {"offset": "x"}]
)
async def test_outcomes_of_others_say_nothing(monkeypatch: pytest.MonkeyPatch, other: dict[str, str]) -> None:
    assert await remember(monkeypatch, FakeTopics(results={0: record(0, 77, RESULT_NAMES, **other)})) is STATE


async def test_nobody_looks_for_ever_among_the_outcomes_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = {at: record(at, at, group="others") for at in range(20_000)}
    topics = FakeTopics(results=strange)
    assert await remember(monkeypatch, topics) is STATE
    assert len(topics.reads) < 8


async def test_too_many_offsets_without_an_outcome_need_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PositionLostError, match="done up to 4, but 1 later items have results, up to offset 5000"):
        await remember(monkeypatch, FakeTopics(results=results(5000)))


async def test_without_the_right_to_read_them_the_broker_is_believed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert await remember(monkeypatch, FakeTopics(results=results(9), forbidden=True)) is STATE
    assert "do not tell whether the broker forgot an offset: a right is missing" in caplog.text
