"""Each transcript is what the batcher of today does, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.transcript import render

TRANSCRIPTS = sorted((Path(__file__).parent.parent / "transcripts").glob("batcher_*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript_holds(path: Path) -> None:
    assert render(path.read_text()) == path.read_text()
