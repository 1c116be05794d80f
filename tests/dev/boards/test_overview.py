"""The overview begins with the verdict."""

from __future__ import annotations

from dev.boards.overview import OFFLINE_IS, overview
from sidecar.core.engine import Limit


def test_the_first_row_is_the_verdict() -> None:
    first, *rest = overview()["panels"]
    assert first["type"] == "row"
    tiles = [each["title"] for each in rest if each["gridPos"]["y"] == 1]
    assert tiles == ["Engine", "Online within its objective", "Offline is held by", "Backlog done at", "Alerts"]


def test_each_limit_has_its_words() -> None:
    assert {str(limit) for limit in Limit} <= OFFLINE_IS.keys()
