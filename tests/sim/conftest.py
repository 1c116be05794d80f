"""A recording in one segment, and the same in several."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.recorded_minute import record


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return record(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return record(tmp_path_factory.mktemp("parts"), segment_records_max=1000)
