"""The demo says what it promised and what it saw, and its exit code says which of the two a host is to blame for."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dev.verdict import judged

GRANTS = {"contended": 60, "offline_of_contended": 6, "window_violations": 0}
GOOD: dict[str, Any] = {
    "engine": {"profile": "70b-tp4-a100", "late_iterations_ratio": 0.03},
    "late_sends_ms": {"p50": 1.0, "p95": 4.0, "p99": 9.0},
    "phases": {
        name: {
            "online": {"n": 100, "errors": 0},
            "tokens_per_s": {"online": 30.0, "offline": 0.0 if name == "online_only" else 120.0},
            "slots_busy_ratio": 0.7,
            "grants": dict(GRANTS),
        }
        for name in ("online_only", "mixed", "overload")
    },
    "interference": {
        "e2e_ratio": {"p50": 1.1, "p99": 1.2}, "goal": {"p50": 1.25, "p99": 1.35}, "reached": True,
    },
    "offline": {"source_offsets": 400, "results": 400, "dead": 0, "lost": 0, "duplicated": 0},
}  # fmt: skip


def report(**changes: Any) -> dict[str, Any]:
    """The good report with some values changed; `__` separates the names of the path."""
    found = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = found
        for parent in parents:
            at = at[parent]
        at[last] = value
    return found


SLOW = {"interference__e2e_ratio": {"p50": 1.985, "p99": 2.3}, "interference__reached": False}


def test_all_promises_kept_is_0_and_each_is_told_with_what_was_seen() -> None:
    verdict = judged(GOOD)
    assert verdict.exit_code == 0
    assert verdict.lines() == [
        "kept       each item has one result or one dead letter: 400 items, 0 lost, 0 twice, 0 dead letters",
        "kept       each online request is answered: 0 of 300 failed",
        "kept       every window of k·10 contended dispatches holds k−1 offline ones:"
        " 0 windows below it; 18 of 180 contended dispatches were offline's",
        "kept       offline work goes on beside online requests: 120 offline tokens/s, 70 % of the slots busy",
        "kept       end to end beside offline work at most 1.25× (p50) and 1.35× (p99) of alone: p50 1.1×, p99 1.2×",
        "verdict: 5 of 5 promises were kept",
    ]


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        (SLOW, "end to end"),
        ({"offline__lost": 1}, "each item"),
        ({"offline__duplicated": 1}, "each item"),
        ({"offline__results": 399}, "each item"),
        ({"offline__source_offsets": 0, "offline__results": 0}, "each item"),
        ({"phases__overload__online__errors": 1}, "each online request"),
        ({"phases__mixed__grants__window_violations": 1}, "every window"),
        ({"phases__mixed__tokens_per_s__offline": 0.0}, "offline work goes on"),
    ],
)
def test_a_broken_promise_is_1_and_named(changes: dict[str, Any], broken: str) -> None:
    verdict = judged(report(**changes))
    assert verdict.exit_code == 1
    assert next(line for line in verdict.lines() if line.startswith("BROKEN")).startswith(f"BROKEN     {broken}")
    assert verdict.lines()[-1] == "verdict: 4 of 5 promises were kept, 1 broken"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"engine__late_iterations_ratio": 0.43}, "43 % of iterations late"),
        ({"late_sends_ms__p95": 180.0}, "requests were sent 180 ms late (p95)"),
    ],
)
@pytest.mark.parametrize("latency", [SLOW, {}])
def test_a_host_that_is_too_slow_has_a_code_of_its_own_whatever_the_latencies(
    changes: dict[str, Any], why: str, latency: dict[str, Any]
) -> None:
    verdict = judged(report(**changes, **latency))
    assert verdict.exit_code == 3
    assert verdict.lines()[-1] == (
        "verdict: 4 of 5 promises were kept, 1 not known,"
        f" host too slow: {why}, figures of latency say nothing about the sidecar"
    )
    assert verdict.document()["promises"][-1]["kept"] is None


def test_latencies_of_an_engine_without_a_pace_are_shown_and_not_judged() -> None:
    for latency in (SLOW, {}):
        verdict = judged(report(engine__profile=None, engine__late_iterations_ratio=None, **latency))
        assert (verdict.exit_code, verdict.promises[-1].kept) == (0, None)
        assert "not judged: the engine keeps no pace" in verdict.promises[-1].seen
    assert judged(report(engine__profile=None, engine__late_iterations_ratio=None, offline__lost=1)).exit_code == 1


def test_a_slow_host_excuses_no_lost_item() -> None:
    verdict = judged(report(engine__late_iterations_ratio=0.5, offline__lost=2))
    assert verdict.exit_code == 1
    assert "1 broken, 1 not known, host too slow: 50 % of iterations late" in verdict.lines()[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"interference__e2e_ratio": {"p50": None, "p99": None}, "interference__reached": None},
        {"phases__mixed__online__n": 12, **SLOW},
    ],
)
def test_without_enough_answers_nothing_is_known_of_latency(changes: dict[str, Any]) -> None:
    verdict = judged(report(**changes))
    assert verdict.lines()[-2].startswith("not known  end to end")
    assert (verdict.exit_code, verdict.lines()[-1]) == (0, "verdict: 4 of 5 promises were kept, 1 not known")
