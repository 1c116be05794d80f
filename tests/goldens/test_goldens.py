"""Moves and renames change no decision: every short run, and a recorded minute, as they were."""

from __future__ import annotations

import json

import pytest

from sidecar.sim.replay import replay
from tests.goldens.traces import CASES, RECORDING, TRACES, trace


def test_every_run_has_its_hash_and_every_hash_its_run() -> None:
    assert list(json.loads(TRACES.read_text())) == CASES


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_decides_as_it_did(case: str) -> None:
    assert trace(case) == json.loads(TRACES.read_text())[case]


def test_a_recorded_minute_is_decided_as_it_was() -> None:
    found = replay([RECORDING])
    assert (found.mismatches, found.records > 1000) == (0, True)
