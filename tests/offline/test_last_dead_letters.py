"""The last dead letters on the status page: where and why, and nothing that a producer wrote."""

from __future__ import annotations

from sidecar.offline.item import Record
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.last_dead_letters import KEPT, LastDeadLetters
from sidecar.offline.owned_partition import FinishedItem


def ended(offset: int, outcome: str = "dlq", headers: tuple[tuple[str, bytes], ...] = ()) -> FinishedItem:
    value = b'{"prompt": "secret"}'
    record = Record(
        topic="requests", partition=3, offset=offset, timestamp_ms=0, key=b"key", value=value, headers=headers
    )
    return FinishedItem(
        record=record,
        outgoing=Outgoing(topic="dlq", key=b"key", value=b"secret", headers=()),
        outcome=outcome,
        reason="" if outcome == "done" else "too_long",
        retries=2,
        output_tokens=0,
        taken_s=0.0,
    )


def test_the_newest_comes_first_with_its_place_its_reason_and_whose_it_is() -> None:
    last = LastDeadLetters(wall=lambda: 5.0)
    last.committed(ended(1))
    last.committed(ended(2, "done"))
    last.committed(ended(7, headers=(("x-job", b"weekly"), ("x-tenant", b"research"))))
    first, second = last.document()
    assert first == {
        "at": 5.0,
        "reason": "too_long",
        "source": "requests/3/7",
        "tenant": "research",
        "job": "weekly",
        "retries": 2,
    }
    assert second["source"] == "requests/3/1"
    assert "secret" not in str(last.document())


def test_only_so_many_are_kept() -> None:
    last = LastDeadLetters()
    for offset in range(3 * KEPT):
        last.committed(ended(offset))
    assert [each["source"] for each in last.document()] == [
        f"requests/3/{offset}" for offset in range(3 * KEPT - 1, 2 * KEPT - 1, -1)
    ]
