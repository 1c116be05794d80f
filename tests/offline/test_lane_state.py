"""States of the lane and of its partitions: one line of the log per change, and the lane's follows from its parts."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pytest

from sidecar.offline.lane_state import Cause, LaneState, Phase, Stated, together

RUNNING = LaneState(phase=Phase.RUNNING)
NO_RIGHT = LaneState(phase=Phase.WAITING, cause=Cause.RIGHTS, detail="a right is missing", since_s=3.0)


def test_a_change_is_logged_once_however_often_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    stated = Stated("partition 3", lambda: now_s)
    with caplog.at_level(logging.INFO):
        for now_s in (1.0, 2.0, 3.0):
            stated.become(Phase.WAITING, Cause.RIGHTS, f"try {now_s}")
        assert stated.now == LaneState(phase=Phase.WAITING, cause=Cause.RIGHTS, detail="try 3.0", since_s=1.0)
        now_s = 90.0
        stated.become(Phase.WAITING, Cause.RIGHTS, "told anew after a minute")
        now_s = 91.0
        stated.become(Phase.RUNNING)
    assert caplog.messages == [
        "partition 3 is waiting: try 1.0",
        "partition 3 is waiting: told anew after a minute (before: rights, 89.0 s)",
        "partition 3 is running (before: rights, 90.0 s)",
    ]
    assert [each.levelno for each in caplog.records] == [logging.WARNING, logging.WARNING, logging.INFO]


def test_a_lane_waits_if_all_of_its_partitions_do_and_is_degraded_if_some_do() -> None:
    assert together(RUNNING, []) == RUNNING
    assert together(RUNNING, [(0, RUNNING), (1, RUNNING)]) == RUNNING
    some = together(RUNNING, [(0, RUNNING), (1, NO_RIGHT)])
    assert (some.text, some.cause, some.since_s) == (
        "degraded: 1 of 2 partitions; partition 1: a right is missing",
        Cause.RIGHTS,
        3.0,
    )
    assert together(RUNNING, [(1, NO_RIGHT)]).text == "waiting: partition 1: a right is missing"
    assert together(RUNNING, [(0, NO_RIGHT), (1, NO_RIGHT)]).phase is Phase.WAITING


def test_a_lane_without_a_consumer_says_so_whatever_its_partitions_did_last() -> None:
    down = LaneState(phase=Phase.WAITING, cause=Cause.UNREACHABLE, detail="no broker answers")
    assert together(down, [(1, NO_RIGHT)]) == down


def test_causes_are_a_closed_set_of_label_values() -> None:
    labels: Iterable[str] = [cause.value for cause in Cause]
    assert all(label.replace("_", "").isalpha() for label in labels)
