"""How long others still have to wait, from how fast requests were over while somebody waited."""

from __future__ import annotations

import pytest

from sidecar.core.pace import HINT_MAX_S, HINT_MIN_S, HINT_UNKNOWN_S, Pace


def test_before_anything_was_over_nothing_is_known() -> None:
    assert Pace().gone_in_s(50, 9.0) == HINT_UNKNOWN_S


def test_a_steady_pace_is_found_and_the_hint_is_bounded() -> None:
    pace = Pace()
    pace.waits(0.0)
    for number in range(1, 100):
        pace.over(number * 0.25)
    assert pace.gone_in_s(40, 24.75) == pytest.approx(10.0)
    assert (pace.gone_in_s(0, 24.75), pace.gone_in_s(10_000, 24.75)) == (HINT_MIN_S, HINT_MAX_S)


def test_a_time_in_which_nobody_waited_is_not_taken_for_a_slow_one() -> None:
    pace = Pace()
    pace.waits(0.0)
    pace.over(0.5)
    pace.nobody_waits()
    pace.over(700.0)
    pace.waits(900.0)
    pace.over(900.5)
    assert pace.gone_in_s(2, 900.5) == pytest.approx(1.0)


def test_a_standstill_counts_as_long_as_it_lasts() -> None:
    pace = Pace()
    pace.waits(0.0)
    for number in range(1, 100):
        pace.over(number * 0.25)
    assert pace.gone_in_s(2, 24.75 + 20.0) == pytest.approx(40.0)
