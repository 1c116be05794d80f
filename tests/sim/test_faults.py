"""Faults are drawn from the seed: the same seed has the same weather, and after `stop` nothing goes wrong."""

from __future__ import annotations

from math import inf

import pytest
from numpy.random import default_rng

from sidecar.sim.faults import FaultRates, SimulatedFaults


def weather(seed: int) -> list[object]:
    rng = default_rng(seed)
    faults = SimulatedFaults(rng, FaultRates.drawn(rng))
    return [(faults.cancel_after_s(), faults.of_dispatch(), faults.down_after_s()) for _ in range(50)]


def test_a_seed_has_its_own_weather_each_time() -> None:
    assert weather(7) == weather(7)
    assert len({repr(weather(seed)) for seed in range(10)}) > 5


def test_each_kind_of_fault_is_absent_in_about_half_of_the_runs() -> None:
    rates = [FaultRates.drawn(default_rng(seed)) for seed in range(400)]
    for kind in ("cancel", "fail", "lose", "down_per_s"):
        absent = sum(getattr(each, kind) == 0 for each in rates) / len(rates)
        assert absent == pytest.approx(0.5, abs=0.1), kind
    assert max(each.cancel for each in rates) <= 0.3


def test_a_dispatch_fails_or_is_lost_as_often_as_the_rates_say() -> None:
    rates = FaultRates(fail=0.2, lose=0.5, retryable=0.5, after_s=2.0)
    faults = SimulatedFaults(default_rng(1), rates)
    drawn = [faults.of_dispatch() for _ in range(4000)]
    failed = [each for each in drawn if each and not each.lost]
    lost = [each for each in drawn if each and each.lost]
    assert len(failed) / len(drawn) == pytest.approx(0.2, abs=0.03)
    assert len(lost) / len(drawn) == pytest.approx(0.8 * 0.5, abs=0.03), "of those that do not fail"
    assert sum(each.retryable for each in failed) / len(failed) == pytest.approx(0.5, abs=0.06)
    assert all(each.retryable for each in lost), "a broken stream blames nobody"
    assert sum(each.after_s for each in failed) / len(failed) == pytest.approx(2.0, rel=0.15)


def test_nothing_goes_wrong_without_rates_or_after_the_stop() -> None:
    stopped = SimulatedFaults(default_rng(1), FaultRates(cancel=1.0, fail=1.0, down_per_s=1.0))
    assert stopped.of_dispatch() is not None
    stopped.stop()
    for faults in (stopped, SimulatedFaults()):
        assert (faults.cancel_after_s(), faults.of_dispatch(), faults.down_after_s()) == (inf, None, inf)
