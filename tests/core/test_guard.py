from __future__ import annotations

from math import inf

import pytest

from sidecar.core.aimd import Aimd, Lateness
from sidecar.core.attribution import Attribution
from sidecar.core.guard import Guard, Margin
from sidecar.core.latency import DecodingRows, LatencyModel
from sidecar.core.request import Lane
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.tracked_request import TrackedRequest
from tests.core.builders import offline, online
from tests.core.test_latency import drive


def guard(*, e2e_s: float = 0.8, enabled: bool = True, slowdown_max: float = 0.1) -> Guard:
    """A guard whose model has learnt 22 ms an iteration and 0.15 ms a row, and whose online takes 0.5 s alone."""
    model, batch = LatencyModel(), DecodingRows()
    drive(model, lambda rows, *_: 22 + 0.15 * rows)
    built = Guard(model, batch, enabled=enabled, ttft_s=0.5, e2e_s=e2e_s, slowdown_max=slowdown_max)
    for _ in range(32):
        built.remember(0.5)
    batch.rows[Lane.ONLINE] = 1
    return built


def test_offline_may_have_the_rows_that_lengthen_an_iteration_by_the_slowdown() -> None:
    assert guard().rows_max(1) == 14  # 10 % of 22.15 ms, at 0.15 ms a row


def test_no_row_is_left_where_online_alone_takes_its_whole_objective() -> None:
    assert guard(e2e_s=0.5).rows_max(1) == 0


def test_where_nothing_may_be_lengthened_no_row_is_left_although_rows_seem_to_cost_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built, free = guard(slowdown_max=0.0), guard()
    monkeypatch.setattr(LatencyModel, "iteration_s", lambda *_: 0.022)
    assert (built.rows_max(1), free.rows_max(1)) == (0, inf)


def test_less_room_means_fewer_rows() -> None:
    assert 0 < guard(e2e_s=0.54).rows_max(1) < 14


def test_an_untrusted_model_leaves_offline_no_rows_beside_online_and_a_guard_switched_off_all() -> None:
    doubted = guard()
    assert doubted.rows_max(1) > 0
    doubted._model.gate.trusted = False
    assert doubted.rows_max(1) == 0
    assert doubted.prefill_allows(5000, 5000, beside_online=True)  # the fixed pacing rules alone
    assert guard(enabled=False).rows_max(1) == inf


def test_the_margin_tightens_at_once_and_loosens_slowly() -> None:
    margin = Margin()
    first = margin.share
    margin.tighten(10.0)
    assert margin.share > first
    tightened = margin.share
    margin.tick(40.0)
    assert margin.share == tightened
    margin.tick(131.0)
    assert first < margin.share < tightened


def test_aimd_halves_once_per_flight_and_grows_by_a_row_a_second() -> None:
    aimd = Aimd(64)
    aimd.violated(arrived_s=9.0, now_s=10.0)
    aimd.violated(arrived_s=9.5, now_s=10.2)  # it came before the decrease, and could not see it
    assert aimd.rows == 32
    aimd.tick(32, 10.9)
    assert aimd.rows == 32
    aimd.tick(32, 11.1)
    aimd.tick(33, 11.2)
    assert aimd.rows == 33
    aimd.tick(5, 13.0)  # what is not used is not known to be harmless
    assert aimd.rows == 33


def test_one_late_request_of_many_is_within_a_99th_percentile_and_two_are_not() -> None:
    lateness = Lateness(99)
    assert not any(lateness.add(False) for _ in range(50))
    assert not lateness.add(True)
    assert lateness.add(True)


@pytest.mark.parametrize(
    ("backfill_until_s", "reserved", "blamed"),
    [
        (1.0, False, True),  # beside it to the end: it may be why
        (0.03, False, False),  # left when it came: that explains 30 ms of 1,000
        (1.0, True, False),  # a reserved dispatch is promised, whatever it costs
    ],
)
def test_without_a_model_a_late_request_is_laid_on_the_backfill_that_was_beside_it(
    backfill_until_s: float, reserved: bool, blamed: bool
) -> None:
    attribution = Attribution(EngineSettings(name="e", slots=64), SchedulerSettings())
    for second in range(0, 8, 2):
        beside = TrackedRequest(offline(f"b{second}"), second, 0.0, reserved=reserved)
        late = TrackedRequest(online(f"a{second}", arrived_s=float(second)), second, 0.0)
        attribution.began(beside, second - 1.0)
        attribution.began(late, second)
        attribution.left(beside, second + backfill_until_s)
        attribution.complete(late, 40, second + 1.0)
        attribution.left(late, second + 1.0)
    figures = attribution.figures(1)
    assert (figures.online_late, figures.aimd_decreases > 0) == (4, blamed)
