"""What the demo found: one row per phase from two readings of the sidecar's counters, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from dev.load import LoadResult, percentiles
from dev.verdict import E2E_RATIO_GOAL

DISPATCH_COUNTERS = {  # name in the report, which readers of reports rely on → name in the status document
    **{name: name for name in ("contended", "offline_of_contended", "window_violations")},
    **{f"turns_{result}": f"reserved_{result}" for result in ("due", "taken", "lapsed")},
}
COUNTERS = (*DISPATCH_COUNTERS.values(), "slots", "slots_free", "worst_window_share")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The sidecar's counters at one moment, all growing since its start; `at_s` is the reader's clock."""

    at_s: float
    slots: int
    slots_free: int
    slot_seconds: float  # both lanes
    tokens: Mapping[str, float]  # output tokens by lane
    contended: int
    offline_of_contended: int
    reserved_due: int
    reserved_taken: int
    reserved_lapsed: int
    window_violations: int
    worst_window_share: float | None


def reading(status: Mapping[str, Any], engine: str) -> Reading:
    """The counters of one engine in a status document."""
    found = status["engines"][engine]
    return Reading(
        at_s=status["now_s"],
        slot_seconds=sum(found["slot_seconds"].values()),
        tokens=found["output_tokens"],
        **{name: found[name] for name in COUNTERS},
    )


def phase_report(before: Reading, after: Reading, settled: Reading, load: LoadResult) -> dict[str, Any]:
    """One phase: what callers saw, and how the counters moved from `before` to `after`.

    Dispatches are counted to `settled`: the next phase's beginning, or for the last one a reading in which no
    reserved dispatch is owed any more. A reserved dispatch that was owed when the phase began is due in it. The worst
    window is the one since the start.
    """
    seconds = after.at_s - before.at_s
    return {
        "online": {
            "n": load.sent,
            "errors": len(load.errors),
            "ttft_ms": percentiles(load.ttft_ms),
            "e2e_ms": percentiles(load.e2e_ms),
        },
        "tokens_per_s": {
            lane: round((after.tokens[lane] - before.tokens[lane]) / seconds, 1) for lane in ("online", "offline")
        },
        "slots_busy_ratio": round((after.slot_seconds - before.slot_seconds) / (seconds * after.slots), 4),
        "grants": {
            "worst_window_share": settled.worst_window_share,
            **{told: getattr(settled, name) - getattr(before, name) for told, name in DISPATCH_COUNTERS.items()},
            "turns_due": settled.reserved_due - before.reserved_taken - before.reserved_lapsed,
        },
    }


def interference(phases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How much longer online requests took beside offline work than without it, and whether that is within the goal.

    `reached` is None where a phase had no answers. On a machine with pacing overruns the ratio says little.
    """
    alone, mixed = (phases[name]["online"]["e2e_ms"] for name in ("online_only", "mixed"))
    ratio = {
        share: round(mixed[share] / alone[share], 3) if alone[share] and mixed[share] else None
        for share in E2E_RATIO_GOAL
    }
    known = [value <= E2E_RATIO_GOAL[share] for share, value in ratio.items() if value is not None]
    return {
        "e2e_ratio": ratio,
        "goal": E2E_RATIO_GOAL,
        "reached": all(known) if len(known) == len(ratio) else None,
    }


def interference_line(found: Mapping[str, Any], engine: Mapping[str, Any]) -> str:
    """The ratios of `interference` in words, with what casts doubt on it."""
    parts = [f"{share} {value}× (goal {found['goal'][share]}×)" for share, value in found["e2e_ratio"].items()]
    ratios = f"end to end beside offline work ÷ without it: {', '.join(parts)}"
    if engine["profile"] is None:
        return f"{ratios}; unpaced: {engine['iterations']:,} iterations, as fast as this host computes them"
    return (
        f"{ratios}; {engine['profile']}:"
        f" {100 * engine['pacing_overrun_ratio']:.1f} % of {engine['iterations']:,} iterations overran their pace"
    )


def phase_table(phases: Mapping[str, Mapping[str, Any]]) -> Table:
    """One column per phase, one row per figure."""
    table = Table(title="Online only, with an offline backlog, and overloaded", title_justify="left")
    table.add_column("")
    for name in phases:
        table.add_column(name.replace("_", " "), justify="right")

    def row(label: str, *path: str, unit: str = "") -> None:
        table.add_row(label, *(_cell(phase, path, unit) for phase in phases.values()))

    row("online requests", "online", "n")
    row("  failed", "online", "errors")
    for share in ("p50", "p95", "p99"):
        row(f"  TTFT {share}", "online", "ttft_ms", share, unit=" ms")
    for share in ("p50", "p99"):
        row(f"  end to end {share}", "online", "e2e_ms", share, unit=" ms")
    row("output tokens/s online", "tokens_per_s", "online")
    row("output tokens/s offline", "tokens_per_s", "offline")
    row("slots busy", "slots_busy_ratio", unit="%")
    row("contended dispatches", "grants", "contended")
    row("  of them offline's", "grants", "offline_of_contended")
    row("  reserved dispatches due / taken", "grants", "turns_due")
    row("  windows below the bound", "grants", "window_violations")
    return table


def _cell(phase: Mapping[str, Any], path: tuple[str, ...], unit: str) -> str:
    value: Any = phase
    for key in path:
        value = value[key]
    if value is None:
        return "-"
    if unit == "%":
        return f"{100 * value:.1f} %"
    if path[-1] == "turns_due":
        return f"{value} / {phase['grants']['turns_taken']}"
    return f"{value:,.0f}{unit}" if isinstance(value, float) else f"{value}{unit}"
