"""Iteration times are learnt from the gaps between the tokens of a recording."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.core.scheduler import Scheduler
from sidecar.sim import recording
from sidecar.sim.gaps import TooFewGapsError
from sidecar.sim.replay import recorded
from tests.sim.recorded_minute import ENGINE, PROFILE, SETTINGS


def test_iteration_times_are_learnt_from_the_gaps(files: list[Path]) -> None:
    profile, error = recorded(files).gaps.profile()

    assert error < 0.05
    for rows, prompt in ((2, 0), (8, 0), (7, 100)):
        assert profile.iteration_s(rows, prompt) == pytest.approx(PROFILE.iteration_s(rows, prompt), rel=0.1)


def test_too_short_a_recording_asks_for_a_profile() -> None:
    with pytest.raises(TooFewGapsError, match="name a profile"):
        recording.read(Scheduler(SETTINGS, [ENGINE]), []).gaps.profile()
