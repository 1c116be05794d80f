"""The count from outside: each item below the watermark has one outcome, or is lost, or has too many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from dev import checker
from dev.checker import CheckerError, TopicCount, check

REQUESTS, RESULTS, DEAD = "inference.requests", "inference.results", "inference.requests.dlq"


@dataclass(slots=True)
class Message:
    """One record, as confluent-kafka gives it."""

    place: tuple[int, int]
    named: list[tuple[str, bytes]]
    text: bytes = b"{}"
    named_topic: str = RESULTS

    def topic(self) -> str:
        return self.named_topic

    def partition(self) -> int:
        return self.place[0]

    def offset(self) -> int:
        return self.place[1]

    def headers(self) -> list[tuple[str, bytes]]:
        return self.named

    def value(self) -> bytes:
        return self.text


def item(partition: int, offset: int) -> Message:
    return Message((partition, offset), [])


def result(partition: int, offset: int, ended_by: str = "length") -> Message:
    named = [("x-source-partition", str(partition).encode()), ("x-source-offset", str(offset).encode())]
    return Message((0, 0), named, json.dumps({"sidecar": {"ended_by": ended_by}}).encode())


def dead(partition: int, offset: int, reason: str = "invalid") -> Message:
    named = {"dlq.original.partition": partition, "dlq.original.offset": offset, "dlq.error.class": reason}
    return Message((0, 0), [(name, str(value).encode()) for name, value in named.items()])


def counted(monkeypatch: pytest.MonkeyPatch, watermarks: dict[int, int], **topics: list[Message]) -> TopicCount:
    names = {REQUESTS: "items", RESULTS: "results", DEAD: "letters"}

    def records(_: str, topic: str) -> Iterator[Message]:
        yield from topics.get(names[topic], [])

    monkeypatch.setattr(checker, "records", records)
    monkeypatch.setattr(checker, "_watermarks", lambda *_: watermarks)
    return check("127.0.0.1:1", "group")


def test_an_item_with_one_outcome_is_clean_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item(0, 0), item(0, 1), item(1, 0)]
    found = counted(
        monkeypatch, {0: 2, 1: 1}, items=items, results=[result(0, 0), result(1, 0, "end_id")], letters=[dead(0, 1)]
    )
    assert found.clean
    assert (found.source_offsets, found.results, found.dead) == (3, 2, 1)
    assert found.ended_by == {"length": 1, "end_id": 1}
    assert found.dead_reasons == {"invalid": 1}


def test_an_item_below_the_watermark_without_an_outcome_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted(monkeypatch, {0: 2}, items=[item(0, 0), item(0, 1), item(0, 2)], results=[result(0, 0)])
    assert (found.lost, found.clean, found.above_watermark) == ([(0, 1)], False, 1)


def test_two_outcomes_of_one_item_are_a_duplicate_also_of_two_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted(monkeypatch, {0: 1}, items=[item(0, 0)], results=[result(0, 0)], letters=[dead(0, 0)])
    assert (found.duplicated, found.clean) == ([(0, 0)], False)


def test_what_is_done_above_the_watermark_is_early_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted(monkeypatch, {0: 0}, items=[item(0, 0), item(0, 1)], results=[result(0, 1)])
    assert (found.early, found.results, found.lost, found.clean) == (1, 0, [], True)
    again = counted(monkeypatch, {0: 0}, items=[item(0, 0), item(0, 1)], results=[result(0, 1), result(0, 1)])
    assert again.duplicated == [(0, 1)], "above the watermark there is never more than one either"


def test_a_result_of_an_item_that_never_was_is_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted(monkeypatch, {0: 1}, items=[item(0, 0)], results=[result(0, 0), result(3, 9)])
    assert (found.foreign, found.clean) == ([(3, 9)], False)


def test_headers_that_an_item_brought_do_not_hide_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    doubled = result(0, 0)
    doubled.named.insert(0, ("x-source-offset", b"77"))
    assert counted(monkeypatch, {0: 1}, items=[item(0, 0)], results=[doubled]).clean


def test_a_result_that_does_not_say_where_it_comes_from_ends_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckerError, match="has no header x-source-partition"):
        counted(monkeypatch, {0: 1}, items=[item(0, 0)], results=[Message((0, 5), [])])
