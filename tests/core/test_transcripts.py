"""Each transcript is what the scheduler of today does, word for word, and no invariant breaks on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.transcript import render

TRANSCRIPTS = sorted((Path(__file__).parent.parent / "transcripts").glob("scheduler_*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript_holds(path: Path) -> None:
    assert render(path.read_text()) == path.read_text()
