"""What an installation has beside code is what this repository shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar import data

ROOT = Path(__file__).parents[2]
COPIED = ("topics.yaml", "item.schema.json", "progress.schema.json", "result.schema.json")


@pytest.mark.parametrize("name", COPIED)
def test_an_installation_has_the_topics_and_schemas_of_the_repository(name: str) -> None:
    assert data.read(name) == (ROOT / "kafka" / name).read_text(), f"run cp kafka/{name} sidecar/data/"


def test_no_schema_of_the_repository_is_left_out() -> None:
    assert {path.name for path in (ROOT / "kafka").glob("*.schema.json")} == set(COPIED) - {"topics.yaml"}
