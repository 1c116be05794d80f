from __future__ import annotations

from typing import Any

from dev.load import LoadResult, percentiles
from dev.report import interference, interference_line, phase_report, phase_table, reading


def status(at_s: float, **counters: Any) -> dict[str, Any]:
    engine = {
        "slots": 8, "slots_free": 0, "contended": 0, "offline_of_contended": 0, "window_violations": 0,
        "reserved_due": 0, "reserved_taken": 0, "reserved_lapsed": 0, "worst_window_share": None,
        "slot_seconds": {"online": 0.0, "offline": 0.0}, "output_tokens": {"online": 0, "offline": 0},
    }  # fmt: skip
    return {"now_s": at_s, "engines": {"a": engine | counters}}


def test_a_phase_is_the_difference_of_two_readings_per_second() -> None:
    before = reading(status(10.0, contended=5, slot_seconds={"online": 1.0, "offline": 7.0}), "a")
    after = reading(
        status(
            20.0,
            contended=25,
            offline_of_contended=2,
            slot_seconds={"online": 11.0, "offline": 73.0},
            output_tokens={"online": 50, "offline": 1000},
        ),
        "a",
    )
    report = phase_report(before, after, after, LoadResult(sent=3, ttft_ms=[5.0, 6.0], e2e_ms=[9.0], errors=["gone"]))

    assert report["slots_busy_ratio"] == 0.95
    assert report["tokens_per_s"] == {"online": 5.0, "offline": 100.0}
    assert report["online"]["n"] == 3
    assert report["online"]["errors"] == 1
    assert report["grants"]["contended"] == 20
    assert report["grants"]["offline_of_contended"] == 2


def test_reserved_dispatches_are_counted_until_none_is_owed() -> None:
    before, after = reading(status(0.0), "a"), reading(status(1.0, reserved_due=3, reserved_taken=2), "a")
    settled = reading(status(2.0, reserved_due=3, reserved_taken=2, reserved_lapsed=1), "a")

    dispatches = phase_report(before, after, settled, LoadResult())["grants"]

    assert (dispatches["turns_due"], dispatches["turns_taken"], dispatches["turns_lapsed"]) == (3, 2, 1)


def test_a_reserved_dispatch_owed_when_a_phase_begins_is_due_in_it() -> None:
    before = reading(status(0.0, reserved_due=19, reserved_taken=18), "a")
    after = reading(status(1.0, reserved_due=53, reserved_taken=53), "a")

    dispatches = phase_report(before, after, after, LoadResult())["grants"]

    assert (dispatches["turns_due"], dispatches["turns_taken"], dispatches["turns_lapsed"]) == (35, 35, 0)


def test_percentiles_are_of_the_values_or_absent() -> None:
    assert percentiles([float(value) for value in range(100)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None}


def test_the_table_has_a_column_for_each_phase() -> None:
    empty = reading(status(0.0), "a")
    later = reading(status(1.0), "a")
    phase = phase_report(empty, later, later, LoadResult())

    assert len(phase_table({"online_only": phase, "mixed": phase}).columns) == 3


def test_interference_is_judged_against_the_goal_and_says_what_casts_doubt_on_it() -> None:
    def phases(p50: float | None, p99: float | None) -> dict[str, Any]:
        return {
            "online_only": {"online": {"e2e_ms": {"p50": 100.0, "p99": 200.0}}},
            "mixed": {"online": {"e2e_ms": {"p50": p50, "p99": p99}}},
        }

    within, beyond = interference(phases(120.0, 260.0)), interference(phases(120.0, 300.0))

    assert within["e2e_ratio"] == {"p50": 1.2, "p99": 1.3}
    assert (within["reached"], beyond["reached"]) == (True, False)
    line = interference_line(within, {"profile": "8b-a100", "iterations": 5000, "pacing_overrun_ratio": 0.02})
    assert "p99 1.3× (goal 1.35×)" in line
    assert "2.0 % of 5,000 iterations overran" in line
    unpaced = interference_line(within, {"profile": None, "iterations": 5000, "pacing_overrun_ratio": None})
    assert unpaced.endswith("unpaced: 5,000 iterations, as fast as this host computes them")


def test_interference_is_unknown_without_answers() -> None:
    empty = {name: {"online": {"e2e_ms": {"p50": None, "p99": None}}} for name in ("online_only", "mixed")}

    assert interference(empty)["reached"] is None
