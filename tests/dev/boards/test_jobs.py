"""The board of jobs begins with those that will be late."""

from __future__ import annotations

from dev.boards.jobs import jobs


def test_the_first_row_is_the_verdict() -> None:
    first, *rest = jobs()["panels"]
    assert first["type"] == "row"
    tiles = [each["title"] for each in rest if each["gridPos"]["y"] == 1]
    assert tiles == ["Jobs at risk", "Deadlines missed", "Items left", "Worst window", "Windows broken"]
