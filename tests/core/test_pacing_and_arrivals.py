"""How often online arrives, and what follows for headroom, window and the prompts of offline work."""

from __future__ import annotations

from math import exp, factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.arrivals import FAST_S, FASTEST_S, ArrivalRate, poisson_quantile, worth_waiting
from sidecar.core.prefill_pace import SLOWER, PrefillPace


@given(st.floats(0.0, 20.0), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_quantile_is_the_least_count_that_covers_it(mean: float, quantile: float) -> None:
    def covered(count: int) -> float:
        return sum(exp(-mean) * mean**n / factorial(n) for n in range(count + 1))

    count = poisson_quantile(mean, quantile)
    assert covered(count) >= quantile - 1e-9
    assert count == 0 or covered(count - 1) < quantile + 1e-9


def _allows(pacing: PrefillPace, tokens: int, step: int, now_s: float, iteration_s: float) -> bool:
    pacing.refill(step, now_s, iteration_s)
    return pacing.allows(tokens, step)


def test_the_rate_is_found_from_arrivals_and_fades_without_them() -> None:
    rate = ArrivalRate()
    for number in range(4000):
        rate.note(number * 0.5)
    assert rate.per_s(2000.0) == pytest.approx(2.0, rel=0.05)
    assert rate.per_s(2600.0) == pytest.approx(2.0 * exp(-2), rel=0.05)


@pytest.mark.parametrize(("per_s", "recent_s"), [(0.2, FAST_S), (2.0, 10.0), (20.0, FASTEST_S)])
def test_a_lull_counts_at_once_in_the_recent_rate_and_the_sooner_the_more_arrive(per_s: float, recent_s: float) -> None:
    rate = ArrivalRate()
    for number in range(4000):
        rate.note(number / per_s)
    last_s = 3999 / per_s
    assert rate.recent_s == pytest.approx(recent_s, rel=0.01)
    assert rate.recent_per_s(last_s) == pytest.approx(per_s, rel=0.2)  # the last one has just been
    assert rate.recent_per_s(last_s + 30) == pytest.approx(rate.recent_per_s(last_s) * exp(-30 / recent_s), rel=0.05)


def test_the_mean_rate_is_known_as_soon_as_something_arrives_and_does_not_follow_a_lull() -> None:
    rate = ArrivalRate()
    assert rate.mean_per_s(100.0) == 0
    for number in range(120):
        rate.note(100 + number / 2)
    assert rate.mean_per_s(160.0) == pytest.approx(2.0, rel=0.05)  # over the one minute that is known
    assert rate.mean_per_s(175.0) == pytest.approx(120 / 75, rel=0.1)


def test_a_window_is_worth_its_price_only_where_it_meets_arrivals() -> None:
    assert worth_waiting(5.0, 0.015)
    assert not worth_waiting(0.33, 0.015)


def test_a_piece_per_iteration_goes_through_and_what_is_long_is_paid_off() -> None:
    pacing = PrefillPace()
    assert _allows(pacing, 128, 128, 10.0, 0.04)
    pacing.take(128)
    assert not _allows(pacing, 128, 128, 10.02, 0.04)
    filled_s = 10.0 + SLOWER * 0.04  # by time alone
    assert pacing.next_s(128, 128, 0.04) == pytest.approx(filled_s)
    assert _allows(pacing, 400, 128, filled_s, 0.04)
    pacing.take(400)
    assert pacing.next_s(128, 128, 0.04) == pytest.approx(filled_s + 400 / 128 * SLOWER * 0.04)


def test_the_end_of_a_chunk_makes_room_for_one_and_two_at_once_for_no_more() -> None:
    pacing = PrefillPace()
    assert _allows(pacing, 128, 128, 10.0, 0.04)
    pacing.take(128)
    assert not _allows(pacing, 128, 128, 10.01, 0.04)
    pacing.boundary(128, 10.01)
    assert pacing.allows(128, 128)
    pacing.take(128)
    pacing.boundary(128, 10.01)
    assert not pacing.allows(128, 128)


def test_the_few_tokens_of_a_resume_go_through_beside_a_piece() -> None:
    pacing = PrefillPace()
    assert _allows(pacing, 1, 128, 10.0, 0.04)
    for _ in range(60):
        pacing.take(1)
    assert _allows(pacing, 60, 128, 10.0, 0.04)
