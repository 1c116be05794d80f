"""An engine that is unlike its profile keeps the profile's times on average, and stalls as often as it is said to."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import default_rng

from sidecar.sim.traits import AS_THE_PROFILE, EngineTraits


def test_an_engine_as_its_profile_takes_the_times_of_the_profile() -> None:
    assert AS_THE_PROFILE.steady
    assert AS_THE_PROFILE.stretched_s(0.02, default_rng(1)) == pytest.approx(0.02)


def test_jitter_spreads_the_times_and_keeps_their_mean() -> None:
    traits, rng = EngineTraits(jitter=0.3), default_rng(1)
    times = [traits.stretched_s(0.01, rng) for _ in range(20_000)]
    assert not traits.steady
    assert np.mean(times) == pytest.approx(0.01, rel=0.02)
    assert np.std(np.log(times)) == pytest.approx(0.3, rel=0.05)


def test_a_stall_comes_with_its_share_and_lasts_its_time() -> None:
    traits, rng = EngineTraits(stall_share=0.1, stall_s=0.5), default_rng(1)
    times = [traits.stretched_s(0.01, rng) for _ in range(5000)]
    stalled = [each for each in times if each > 0.1]
    assert len(stalled) / len(times) == pytest.approx(0.1, abs=0.02)
    assert stalled == pytest.approx([0.51] * len(stalled))
