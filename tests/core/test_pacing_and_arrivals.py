"""How often online arrives, and what follows for headroom, window and the prompts of offline work."""

from __future__ import annotations

from math import exp, factorial, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.arrivals import CALM_MAX, CALM_MIN, ArrivalRate, poisson_quantile, worth_waiting
from sidecar.core.engine import Engine
from sidecar.core.prefill_pace import PrefillPace
from sidecar.core.settings import EngineSettings, SchedulerSettings


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


def test_a_burst_is_less_calm_than_usual_and_a_lull_calmer() -> None:
    rate = ArrivalRate()
    now_s = 0.0
    for _ in range(300):
        now_s += 5.0
        rate.note(now_s)
    assert rate.calm(now_s + 60) == CALM_MAX
    for _ in range(30):
        now_s += 0.2
        rate.note(now_s)
    assert rate.calm(now_s) == CALM_MIN


def test_where_many_always_come_the_usual_is_not_calm() -> None:
    rare, often = ArrivalRate(), ArrivalRate()
    for number in range(4000):
        rare.note(number * 1.0)
        often.note(number * 0.25)
    assert rare.calm(4000.0) == pytest.approx(1.0, abs=0.05)
    assert often.calm(1000.0) == pytest.approx(sqrt(1 / 2), abs=0.05)


def test_a_window_is_worth_its_price_only_where_it_meets_arrivals() -> None:
    assert worth_waiting(5.0, 0.015)
    assert not worth_waiting(0.33, 0.015)


def test_a_piece_per_iteration_goes_through_and_what_is_long_is_paid_off() -> None:
    pacing = PrefillPace()
    assert _allows(pacing, 128, 128, 10.0, 0.04)
    pacing.take(128)
    assert not _allows(pacing, 128, 128, 10.02, 0.04)
    assert pacing.next_s(128, 128, 0.04) == pytest.approx(10.04)
    assert _allows(pacing, 400, 128, 10.04, 0.04)
    pacing.take(400)
    assert pacing.next_s(128, 128, 0.04) == pytest.approx(10.04 + 400 / 128 * 0.04)


def test_the_few_tokens_of_a_resume_go_through_beside_a_piece() -> None:
    pacing = PrefillPace()
    assert _allows(pacing, 1, 128, 10.0, 0.04)
    for _ in range(60):
        pacing.take(1)
    assert _allows(pacing, 60, 128, 10.0, 0.04)


def test_yielding_holds_on_until_the_next_arrival_is_expected_if_it_is_within_the_hold() -> None:
    engine = Engine.of(EngineSettings(name="a", yield_rows=0, yield_hold_ms=500), SchedulerSettings(), ArrivalRate())
    subject = engine.yield_limit
    subject.online_left(rate_per_s=1.0, now_s=10.0)
    assert subject.rows_max(0, 10.1) > 64
    subject.online_left(rate_per_s=4.0, now_s=10.0)
    assert subject.rows_max(0, 10.24) == 0
    assert subject.rows_max(0, 10.25) > 64
    assert subject.rows_max(1, 99.0) == 0
