"""What the driver tells of a request: whether it began late, and how much slower it was than alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.call import Timeline
from sidecar.core.request import Lane, Request

TIMES = st.floats(0, 1e6)


def request(ttft_objective_ms: float | None = None) -> Request:
    stated: dict[str, Any] = {} if ttft_objective_ms is None else {"ttft_objective_ms": ttft_objective_ms}
    return Request(id="r", lane=Lane.ONLINE, model="m", arrived_s=2.0, prompt_tokens=1, output_tokens_max=1, **stated)


@pytest.mark.parametrize(
    ("first_token_s", "own_ms", "late"),
    [
        (None, None, False),  # it has not begun: nothing is late yet
        (2.5, None, False),
        (2.75, None, True),
        (2.25, 200.0, True),
        (2.75, 1000.0, False),
    ],
)
def test_a_request_began_late_if_its_first_token_came_after_the_objective_that_counts(
    first_token_s: float | None, own_ms: float | None, late: bool
) -> None:
    assert Timeline(arrived_s=2.0, first_token_s=first_token_s).began_late(request(own_ms), 500.0) is late


@pytest.mark.parametrize("unknown", [{"alone_s": None}, {"alone_s": 0.0}, {"dispatched_s": None}, {"finished_s": None}])
def test_where_one_figure_is_not_known_the_slowdown_is_not(unknown: dict[str, Any]) -> None:
    known: dict[str, Any] = {"arrived_s": 0.0, "dispatched_s": 1.0, "finished_s": 4.0, "alone_s": 2.0}
    assert Timeline(**known).slowdown == 1.5
    assert Timeline(**(known | unknown)).slowdown is None


@given(queued_s=TIMES, took_s=st.floats(0.001, 1e5))
def test_what_takes_as_long_as_alone_has_no_slowdown_however_long_it_waited(queued_s: float, took_s: float) -> None:
    timeline = Timeline(arrived_s=0.0, dispatched_s=queued_s, finished_s=queued_s + took_s, alone_s=took_s)
    assert timeline.slowdown == pytest.approx(1.0, rel=1e-3)
