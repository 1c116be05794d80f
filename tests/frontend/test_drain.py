"""When the topic will be done: what is left over what drains."""

from __future__ import annotations

import pytest

from sidecar.offline.metrics import Drain


def test_at_a_steady_rate_it_is_what_is_left_over_the_rate() -> None:
    drain = Drain()
    for second in range(0, 600, 15):
        drain.look(2 * second, float(second))
    assert drain.eta_s(1000) == pytest.approx(500.0)


def test_where_nothing_ends_the_end_is_not_known_and_nothing_left_is_done() -> None:
    drain = Drain()
    for second in (0.0, 15.0):
        drain.look(7, second)
    assert drain.eta_s(1) is None
    assert drain.eta_s(0) == 0.0


def test_looks_close_together_do_not_disturb_the_rate() -> None:
    drain = Drain()
    for tick in range(3000):
        drain.look(tick // 10, tick / 10)  # ten looks per second, one item per second
    assert drain.per_s == pytest.approx(1.0, rel=0.05)
