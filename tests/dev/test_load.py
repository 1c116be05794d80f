from __future__ import annotations

import pytest

from dev.load import arrivals


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others() -> None:
    first = arrivals(rate_per_s=6.0, seconds=30.0, seed=7)

    assert first == arrivals(rate_per_s=6.0, seconds=30.0, seed=7)
    assert first != arrivals(rate_per_s=6.0, seconds=30.0, seed=8)


def test_arrivals_are_in_order_inside_the_phase_and_near_their_rate() -> None:
    due_s = [each.due_s for each in arrivals(rate_per_s=50.0, seconds=100.0, seed=1)]

    assert due_s == sorted(due_s)
    assert 0 < due_s[0] < due_s[-1] < 100
    assert len(due_s) == pytest.approx(5000, rel=0.1)
