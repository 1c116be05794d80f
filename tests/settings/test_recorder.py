"""How much the recorder keeps: one record and one segment at least."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.core.errors import SettingsError
from sidecar.settings.recorder import RecorderSettings


@pytest.mark.parametrize("name", ["segment_records_max", "segments_max"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_recorder_that_keeps_nothing_is_refused_by_name(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=f"recorder: {name} must be >= 1, not {value}"):
        RecorderSettings(directory=tmp_path, **{name: value})
    assert getattr(RecorderSettings(directory=tmp_path, **{name: 1}), name) == 1
