"""The board of costs begins with what offline work adds to a request."""

from __future__ import annotations

from dev.boards.costs import costs


def test_the_first_row_is_the_verdict() -> None:
    first, *rest = costs()["panels"]
    assert first["type"] == "row"
    tiles = [each["title"] for each in rest if each["gridPos"]["y"] == 1]
    assert tiles == ["Added to a request", "Share of a request", "Slowest twentieth", "Trust in the prediction"]
