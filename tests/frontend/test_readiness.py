"""Whether requests are served now, and that whoever watches hears of each change."""

from __future__ import annotations

from functools import partial

from sidecar.frontend.readiness import Readiness


def test_requests_are_served_while_an_engine_is_up_and_nothing_drains() -> None:
    readiness = Readiness()
    assert not readiness.serving
    readiness.engine_is("a", True)
    readiness.engine_is("b", True)
    readiness.engine_is("a", False)
    assert readiness.serving
    readiness.drain()
    assert not readiness.serving


def test_whoever_took_the_event_before_a_change_hears_of_it_and_not_of_the_next_one() -> None:
    readiness = Readiness()
    for change in (partial(readiness.engine_is, "a", True), readiness.drain, readiness.end):
        before = readiness.changed
        change()
        assert before.is_set()
        assert not readiness.changed.is_set()
    assert readiness.over
