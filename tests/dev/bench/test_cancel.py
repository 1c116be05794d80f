"""From the word to stop to a free slot: what the bench times, and what it makes of the times."""

from __future__ import annotations

import asyncio

import pytest

from dev.bench.cancel import Stopwatch, spread
from sidecar.core.events import Abort, Ended, Lost, Progressed, Stopped
from sidecar.core.request import EndReason


def test_a_stop_is_timed_from_the_abort_to_the_end_of_its_dispatch() -> None:
    watch = Stopwatch()
    watch.streaming["a"] = asyncio.Event()
    watch.handled(1.0, Progressed(engine="e0", tokens=(("a", 1),), first_tokens=("a",)), ())
    assert watch.streaming["a"].is_set()
    watch.handled(2.0, Progressed(engine="e0", tokens=()), [Abort(request_id="a", engine="e0")])
    watch.handled(2.25, Stopped(request_id="a", output_tokens=3), ())
    assert watch.stop_to_free_ms == pytest.approx([250])
    assert watch.ended_by == {"stopped": 1}


def test_an_end_that_nobody_asked_for_is_no_stop() -> None:
    watch = Stopwatch()
    watch.handled(2.0, Ended(request_id="a", reason=EndReason.LENGTH, output_tokens=3), ())
    watch.handled(3.0, Lost(request_id="b"), ())
    assert (watch.stop_to_free_ms, watch.ended_by) == ([], {})


def test_the_spread_is_the_median_the_99th_percentile_and_the_most() -> None:
    assert spread([float(each) for each in range(200, 0, -1)]) == {"p50": 101.0, "p99": 199.0, "max": 200.0}
    assert spread([7.04]) == {"p50": 7.0, "p99": 7.0, "max": 7.0}
