"""The board of the engine begins with whether it answers."""

from __future__ import annotations

from dev.boards.engine import engine


def test_the_first_row_is_the_verdict() -> None:
    first, *rest = engine()["panels"]
    assert first["type"] == "row"
    tiles = [each["title"] for each in rest if each["gridPos"]["y"] == 1]
    assert tiles == ["Engine", "Silence", "Foreign slots", "Latency model", "Loop lag", "Spans dropped"]
