"""What the demo promises, what was seen of it, and whether the host was fast enough for the figures to mean it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

KEPT, BROKEN, HOST_TOO_SLOW = 0, 1, 3  # exit codes of the demo
LATE_ITERATIONS_MAX = 0.2  # above it the engine is another one in the two phases that are compared
LATE_SENDS_MS = 50.0  # p95: above it the load itself waits for the host
REQUESTS_MIN = 50  # with fewer the 99th percentile is one request
E2E_RATIO_GOAL = {"p50": 1.25, "p99": 1.35}  # end to end beside offline work ÷ alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One promise. `kept` is None where the figures say nothing about it."""

    promised: str
    seen: str
    kept: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoVerdict:
    """All promises, and what was wrong with the host ("" = nothing)."""

    promises: tuple[Promise, ...]
    host: str

    @property
    def exit_code(self) -> int:
        """0 if nothing was broken, 1 if a promise was, 3 if the host was too slow to tell."""
        if any(each.kept is False for each in self.promises):
            return BROKEN
        return HOST_TOO_SLOW if self.host else KEPT

    @property
    def summary(self) -> str:
        """In a word."""
        return {KEPT: "kept", BROKEN: "broken", HOST_TOO_SLOW: "host too slow"}[self.exit_code]

    def lines(self) -> list[str]:
        """For people: one line per promise, then the verdict."""
        marks = {True: "kept", False: "BROKEN", None: "not known"}
        found = [f"{marks[each.kept]:9}  {each.promised}: {each.seen}" for each in self.promises]
        counts = {kept: sum(each.kept is kept for each in self.promises) for kept in (True, False, None)}
        parts = [f"{counts[True]} of {len(self.promises)} promises were kept"]
        if counts[False]:
            parts.append(f"{counts[False]} broken")
        if counts[None]:
            parts.append(f"{counts[None]} not known")
        if self.host:
            parts.append(f"host too slow: {self.host}, figures of latency say nothing about the sidecar")
        return [*found, f"verdict: {', '.join(parts)}"]

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "verdict": self.summary,
            "exit_code": self.exit_code,
            "host": self.host,
            "promises": [asdict(each) for each in self.promises],
        }


def judged(report: Mapping[str, Any]) -> DemoVerdict:
    """The verdict on a report of the demo."""
    host = host_fault(report)
    return DemoVerdict(
        promises=(
            _offline(report["offline"]), _answers(report["phases"]), _reservation(report["phases"]),
            _harvest(report["phases"]), _latency(report, host),
        ),
        host=host,
    )  # fmt: skip


def host_fault(report: Mapping[str, Any]) -> str:
    """Return why latencies measured on this host say nothing; "" if they do say something."""
    late, sends_ms = report["engine"]["late_iterations_ratio"], report["late_sends_ms"]["p95"]
    if late is not None and late > LATE_ITERATIONS_MAX:
        return f"{100 * late:.0f} % of iterations late"
    if sends_ms is not None and sends_ms > LATE_SENDS_MS:
        return f"requests were sent {sends_ms:.0f} ms late (p95)"
    return ""


def _offline(offline: Mapping[str, Any]) -> Promise:
    whole = offline["source_offsets"] == offline["results"] + offline["dead"]
    return Promise(
        promised="each item has one result or one dead letter",
        seen=f"{offline['source_offsets']} items, {offline['lost']} lost, {offline['duplicated']} twice,"
        f" {offline['dead']} dead letters",
        kept=whole and not offline["lost"] and not offline["duplicated"] and offline["source_offsets"] > 0,
    )


def _answers(phases: Mapping[str, Any]) -> Promise:
    sent = sum(each["online"]["n"] for each in phases.values())
    failed = sum(each["online"]["errors"] for each in phases.values())
    return Promise(promised="each online request is answered", seen=f"{failed} of {sent} failed", kept=not failed)


def _reservation(phases: Mapping[str, Any]) -> Promise:
    dispatches = [each["grants"] for each in phases.values()]
    contended, violations = (sum(each[name] for each in dispatches) for name in ("contended", "window_violations"))
    share = sum(each["offline_of_contended"] for each in dispatches)
    return Promise(
        promised="every window of k·10 contended dispatches holds k−1 offline ones",
        seen=f"{violations} windows below it; {share} of {contended} contended dispatches were offline's",
        kept=not violations,
    )


def _harvest(phases: Mapping[str, Any]) -> Promise:
    tokens, busy = phases["mixed"]["tokens_per_s"]["offline"], phases["mixed"]["slots_busy_ratio"]
    return Promise(
        promised="offline work goes on beside online requests",
        seen=f"{tokens:.0f} offline tokens/s, {100 * busy:.0f} % of the slots busy",
        kept=tokens > 0,
    )


def _latency(report: Mapping[str, Any], host: str) -> Promise:
    found = report["interference"]
    ratios, goal = found["e2e_ratio"], found["goal"]
    few = min(report["phases"][name]["online"]["n"] for name in ("online_only", "mixed")) < REQUESTS_MIN
    seen = ", ".join(f"{share} {'-' if value is None else f'{value}×'}" for share, value in ratios.items())
    # Without a pace an iteration takes what the host gives, and nothing tells its noise from our interference.
    paced = report["engine"]["profile"] is not None
    doubts = [f"fewer than {REQUESTS_MIN} requests"] * few + ["not judged: the engine keeps no pace"] * (not paced)
    return Promise(
        promised=f"end to end beside offline work at most {goal['p50']}× (p50) and {goal['p99']}× (p99) of alone",
        seen=f"{seen} ({'; '.join(doubts)})" if doubts else seen,
        kept=None if host or doubts else found["reached"],
    )
