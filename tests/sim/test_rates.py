"""Online requests arrive at the rates that a workload names, in bursts, steps, rounds and weeks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from numpy.random import Generator, default_rng

from sidecar.sim import rates
from sidecar.sim.rates import RateSegment, Rounds

Segments = Callable[[Generator, float], Iterator[RateSegment]]


def mean_per_s(segments: list[RateSegment]) -> float:
    span_s = segments[-1].end_s - segments[0].begin_s
    return sum((each.end_s - each.begin_s) * each.rate_per_s for each in segments) / span_s


@pytest.mark.parametrize(
    "process",
    [
        rates.constant(3.0),
        rates.step(1.0, 4.0),
        rates.alternating(6.0, 3.0, 90.0),
        rates.bursty(lambda _: 1.0),
        rates.week,
    ],
)
def test_segments_follow_each_other_without_a_gap_and_fill_the_hours(process: Segments) -> None:
    segments = list(process(default_rng(1), 2.0))
    assert (segments[0].begin_s, segments[-1].end_s) == (0.0, 7200.0)
    assert all(one.end_s == other.begin_s for one, other in pairwise(segments))
    assert all(each.rate_per_s >= 0 for each in segments)


def test_bursts_of_three_times_the_mean_keep_the_mean() -> None:
    segments = list(rates.bursty(lambda _: 2.0)(default_rng(1), 200.0))
    assert mean_per_s(segments) == pytest.approx(2.0, rel=0.1)
    assert sorted({each.rate_per_s for each in segments}) == pytest.approx([1.0, 6.0])


def test_alternating_rates_begin_with_a_pause_so_that_each_onset_is_seen() -> None:
    segments = list(rates.alternating(6.0, 3.0, 90.0)(default_rng(1), 0.1))
    assert [each.rate_per_s for each in segments] == [3.0, 6.0, 3.0, 6.0]


def test_a_step_changes_the_rate_in_the_middle() -> None:
    first, then = rates.step(1.0, 4.0)(default_rng(1), 1.0)
    assert (first.rate_per_s, first.end_s, then.rate_per_s) == (1.0, 1800.0, 4.0)


def test_a_week_fits_into_any_hours_with_nights_below_days() -> None:
    long, short = (mean_per_s(list(rates.week(default_rng(1), hours))) for hours in (168.0, 20.0))
    assert short == pytest.approx(long, rel=0.35)
    segments = list(rates.week(default_rng(1), 168.0))
    nights = [each for each in segments if 2 <= each.begin_s / 3600 % 24 < 4]
    days = [each for each in segments if 14 <= each.begin_s / 3600 % 24 < 16]
    assert 3 * mean_rate(nights) < mean_rate(days)


def mean_rate(segments: list[RateSegment]) -> float:
    return float(np.mean([each.rate_per_s for each in segments]))


def test_poisson_moments_lie_in_their_segment_in_order_at_its_rate() -> None:
    times = rates.poisson(default_rng(1), RateSegment(begin_s=100.0, end_s=1100.0, rate_per_s=5.0))
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert 100.0 <= times[0] < times[-1] < 1100.0
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("gaps_cv", [0.5, 1.0, 3.0])
def test_renewals_have_the_rate_and_the_variation_of_their_gaps(gaps_cv: float) -> None:
    segment = RateSegment(begin_s=0.0, end_s=20_000.0, rate_per_s=2.0)
    gaps = np.diff(rates.renewals(default_rng(1), segment, gaps_cv))
    assert 1 / gaps.mean() == pytest.approx(2.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(gaps_cv, rel=0.1)


def test_rounds_come_at_once_and_only_within_the_hours() -> None:
    rounds = Rounds(count=5, size=3, every_s=900.0)
    assert rounds.times(0.5).tolist() == [0.0] * 3 + [900.0] * 3
