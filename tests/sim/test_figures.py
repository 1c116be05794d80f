"""The arithmetic of the figures."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.sim.figures import (
    MeasurementError,
    ReservationRecord,
    Served,
    added,
    mean_added,
    mean_ratio,
    pair,
    paired_added,
    ratio,
)


def served(name: str, at_s: float, e2e_s: float) -> Served:
    return Served(id=name, tenant="default", arrived_s=at_s, ttft_s=e2e_s / 2, e2e_s=e2e_s)


def turns(pattern: str, every: int) -> ReservationRecord:
    return ReservationRecord(every=every, offline=[each == "x" for each in pattern])


def test_every_nth_dispatch_breaks_no_window() -> None:
    promise = turns("---x" * 50, every=4)
    assert promise.violations() == 0
    assert promise.starvation_gap_dispatches() == 3
    assert promise.worst_window_share() == 2 / 8


def test_a_missing_reserved_dispatch_is_counted_in_every_window_that_holds_it() -> None:
    promise = turns("---x" * 10 + "-" * 8 + "---x" * 10, every=4)
    assert promise.violations() > 0
    assert promise.starvation_gap_dispatches() == 11
    assert promise.worst_window_share() == 0


def test_too_few_dispatches_for_a_window_are_no_violation() -> None:
    promise = turns("-----", every=4)
    assert (promise.violations(), promise.worst_window_share(), promise.starvation_gap_dispatches()) == (0, None, 5)


def test_only_requests_answered_in_both_runs_are_compared() -> None:
    paired = pair([([served("a", 0, 1), served("b", 1, 2)], [served("b", 1, 3), served("c", 2, 9)])], lambda r: r.e2e_s)
    assert (paired.reference.tolist(), paired.policy.tolist()) == ([2.0], [3.0])


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(MeasurementError):
        pair([([served("a", 0, 1)], [])], lambda each: each.e2e_s)


def test_equal_runs_have_a_ratio_of_one_without_spread() -> None:
    run = [served(str(n), n * 60.0, 1 + n % 7) for n in range(100)]
    estimate = ratio(pair([(run, run)], lambda each: each.e2e_s), 99)
    assert (estimate.mean, estimate.ci_low, estimate.ci_high) == (1.0, 1.0, 1.0)


def test_a_constant_delay_is_found_with_an_interval_of_no_width() -> None:
    alone = [served(str(n), n * 60.0, 1 + n % 7) for n in range(100)]
    mixed = [served(each.id, each.arrived_s, each.e2e_s + 0.25) for each in alone]
    estimate = added(pair([(alone, mixed)], lambda each: each.e2e_s), 50)
    assert np.allclose([estimate.mean, estimate.ci_low, estimate.ci_high], 0.25)


def test_the_interval_covers_the_true_difference_of_noisy_runs() -> None:
    rng = np.random.default_rng(5)
    alone = [served(str(n), n * 10.0, 1.0) for n in range(2000)]
    mixed = [served(each.id, each.arrived_s, 1.0 + rng.exponential(0.1)) for each in alone]
    estimate = added(pair([(alone, mixed)], lambda each: each.e2e_s), 50)
    assert estimate.ci_low < 0.1 * np.log(2) < estimate.ci_high


def test_the_price_is_the_mean_of_what_was_added_and_its_percentiles_are_of_the_differences() -> None:
    # One request in ten is 5 s late.
    alone = [served(str(number), number, 1.0 + number / 10) for number in range(100)]
    mixed = [
        served(each.id, each.arrived_s, each.e2e_s + (5.0 if n % 10 == 0 else 0.0)) for n, each in enumerate(alone)
    ]
    paired = pair([(alone, mixed)], lambda each: each.e2e_s)
    assert mean_added(paired).mean == pytest.approx(0.5)
    assert mean_ratio(paired).mean == pytest.approx(1 + 0.5 / 5.95)
    assert [paired_added(paired, p) for p in (50, 95, 99)] == pytest.approx([0.0, 5.0, 5.0])
    assert added(paired, 50).mean < 1.0
