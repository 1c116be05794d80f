"""The board of Kafka begins with what the lane does."""

from __future__ import annotations

from dev.boards.kafka import kafka


def test_the_first_row_is_the_verdict() -> None:
    first, *rest = kafka()["panels"]
    assert first["type"] == "row"
    tiles = [each["title"] for each in rest if each["gridPos"]["y"] == 1]
    assert tiles == ["The lane is", "Items left", "Oldest item", "Dead letters", "Fenced"]
