"""The figures of `sidecar simulate`: what each policy gave, against the reference and the ceiling. JSON and a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite, nan
from typing import Any

import numpy as np

from sidecar.sim.figures import (
    Estimate,
    MeasurementError,
    Paired,
    Served,
    added,
    mean_added,
    mean_ratio,
    pair,
    paired_added,
    ratio,
)
from sidecar.sim.jobs import deadline_figures, eta_figures, item_figures, spread_days
from sidecar.sim.policies import BOUND, Policy
from sidecar.sim.simulation_run import Result, RunPlan
from sidecar.sim.tables import Table

RELAY_TOKEN_S = 61e-6  # CPU of the one event loop for a token that is relayed by itself, measured on two cores
STEADY_HOURS = 0.25  # in a shorter run the batch fills in step, and a harvest above the ceiling says nothing


def figures(
    plan: RunPlan,
    policy: Policy,
    reference: Sequence[Result],
    results: Sequence[Result],
    ceilings: Sequence[float],
) -> dict[str, Any]:
    """The figures of one policy over all its seeds. Raises MeasurementError for a harvest above 100 %."""
    time_scale, heavy = (
        plan.workload.time_scale(plan.hours),
        "" if plan.recorded or plan.trace else plan.workload.heavy_tenant,
    )
    runs = [(alone.served, mixed.served) for alone, mixed in zip(reference, results, strict=True)]
    harvest = _harvest(plan, policy, results, ceilings)
    jobs = [each.jobs for each in results]
    return {
        "online": {"n": sum(len(each.served) for each in results), "refused": sum(each.refused for each in results)},
        **_latencies(runs),
        "harvest": harvest,
        "relay": _relay(results),
        "busy_ratio": _mean(each.busy_ratio for each in results),
        "redone_ratio": _mean(each.redone_ratio for each in results),
        "wasted_ratio": _mean(each.wasted_ratio for each in results),
        "prefix_hit_ratio": _mean(each.shared_ratio for each in results),
        "preemptions": sum(each.preemptions for each in results),
        "over_eviction": _over_eviction(results),
        "offline_tokens_per_s": (harvest or 0.0) * _mean(ceilings) if policy is BOUND else _tokens_per_s(results),
        "ceiling_tokens_per_s": _mean(ceilings),
        "itl_ratio": {"p99": _known(_gap_p99(results) / _gap_p99(reference))},
        "other_tenants_ttft_ratio": {"p99": _others_p99(runs, heavy) if heavy else None},
        "completion_spread_days": spread_days(jobs, time_scale),
        "eta": eta_figures(jobs),
        "deadlines": deadline_figures(jobs),
        "job_items": item_figures(jobs),
        "offline_contended_share": _mean(each.promise.share for each in results),
        "worst_window_share": _least(each.promise.worst_window_share() for each in results),
        "window_violations": sum(each.promise.violations() for each in results),
        "starvation_gap": {
            "grants": max(each.promise.starvation_gap_dispatches() for each in results),
            "s": max(each.starvation_gap_s for each in results) if policy.offline else None,
        },
        "trace_sha256": [each.sha256 for each in results],
    }


def _latencies(runs: Sequence[tuple[Sequence[Served], Sequence[Served]]]) -> dict[str, Any]:
    """Return what online requests paid, the mean first. `runs` are (reference, policy) of each seed."""
    ttft, e2e = pair(runs, lambda each: each.ttft_s), pair(runs, lambda each: each.e2e_s)
    return {
        "price_ms": _price_ms(e2e),
        "price_ms_ci": _interval_ms(mean_added(e2e)),
        "ttft_price_ms": _price_ms(ttft),
        "e2e_ratio": {"mean": mean_ratio(e2e).mean},
        "ttft_ms": _percentiles(ttft),
        "e2e_ms": _percentiles(e2e),
        "ttft_ratio": {f"p{p}": asdict(ratio(ttft, p)) for p in (50, 95, 99)},
        "e2e_added_ms": {f"p{p}": added(e2e, p).mean * 1000 for p in (50, 99)},
        "e2e_added_ms_ci": {f"p{p}": _interval_ms(added(e2e, p)) for p in (50, 99)},
    }


def _harvest(plan: RunPlan, policy: Policy, results: Sequence[Result], ceilings: Sequence[float]) -> float | None:
    if policy is BOUND:
        return _mean(each.idle_ratio for each in results)
    if not policy.offline or not plan.workload.endless:
        return None
    harvest = _tokens_per_s(results) / _mean(ceilings)
    if plan.hours < STEADY_HOURS:
        return harvest if harvest <= 1 else None
    if harvest > 1 and policy.prices.offline_prefill:  # at no cost there is no prefill, and the ceiling has it
        raise MeasurementError(f"{policy.name}: harvest {harvest:.4f} is above the ceiling; measure it for longer")
    return harvest


def _tokens_per_s(results: Sequence[Result]) -> float:
    return _mean(each.offline_tokens_per_s for each in results)


def _price_ms(paired: Paired) -> dict[str, float]:
    """Return what was added to each request: the mean, and percentiles of the difference, request by request."""
    percentiles = {f"paired_p{p}": paired_added(paired, p) * 1000 for p in (50, 95, 99)}
    return {"mean": mean_added(paired).mean * 1000, **percentiles}


def _relay(results: Sequence[Result]) -> dict[str, float]:
    """Return what relaying the offline tokens costs, which the runs do not hold: CPU, and the wait of an online token.

    The tokens of one iteration arrive together, and an online one waits for half of the offline ones on average.
    """
    rows = _mean(each.offline_rows for each in results)
    return {"cpu_ratio": _tokens_per_s(results) * RELAY_TOKEN_S, "wait_ms": rows / 2 * RELAY_TOKEN_S * 1000}


def _percentiles(paired: Paired) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(paired.policy, p)) * 1000 for p in (50, 95, 99)}


def _interval_ms(estimate: Estimate) -> dict[str, float]:
    return {"ci_low": estimate.ci_low * 1000, "ci_high": estimate.ci_high * 1000}


def _over_eviction(results: Sequence[Result]) -> float | None:
    """Victims ÷ the fewest that would have done; None without victims."""
    least = sum(each.victims_least for each in results)
    return sum(each.preemptions for each in results) / least if least else None


def _gap_p99(results: Sequence[Result]) -> float:
    """The 99th percentile of the gaps between tokens of online requests, each token counted once."""
    gaps = sorted(each for result in results for each in result.gaps_s)
    if not gaps:
        return nan
    weights = np.cumsum([weight for _, weight in gaps])
    return gaps[int(np.searchsorted(weights, 0.99 * weights[-1]))][0]


def _known(value: float) -> float | None:
    """`value`, or None where there was nothing to compute it from."""
    return value if isfinite(value) else None


def _others_p99(runs: Sequence[tuple[Sequence[Any], Sequence[Any]]], heavy: str) -> float:
    """Return how much later the first tokens of everybody but `heavy` come."""
    others = [tuple([each for each in served if each.tenant != heavy] for served in both) for both in runs]
    return ratio(pair([(alone, mixed) for alone, mixed in others], lambda each: each.ttft_s), 99).mean


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _least(values: Iterable[float | None]) -> float | None:
    return min((each for each in values if each is not None), default=None)


def table(name: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """The figures that decide, one line per policy, the price first.

    `+mean`, `+p95` and `+p99` are ms added to a request end to end, request by request; `ttft` are ratios of
    percentiles; `reserved` is offline's share of the contended dispatches, `gap` the most of them between two of its.
    """
    titles = ("+mean", "95 %", "e2e ×", "+p95", "+p99", "ttft × p50/p95/p99", "itl99 ×", "harvest", "tok/s")
    shown = Table(title=name, columns=("policy", *titles, "wasted", "reserved", "gap"))
    for policy, row in rows.items():
        shown.add_row(policy, *_cells(row))
    return shown


def _cells(row: Mapping[str, Any]) -> list[str]:
    price, interval, gaps = row["price_ms"], row["price_ms_ci"], row["itl_ratio"]["p99"]
    return [
        f"{price['mean']:+.1f}",
        f"{interval['ci_low']:+.1f} … {interval['ci_high']:+.1f}",
        f"{row['e2e_ratio']['mean']:.3f}",
        *(f"{price[f'paired_{p}']:+.0f}" for p in ("p95", "p99")),
        "/".join(f"{row['ttft_ratio'][p]['mean']:.3f}" for p in ("p50", "p95", "p99")),
        "" if gaps is None else f"{gaps:.2f}",
        "" if row["harvest"] is None else f"{row['harvest']:.1%}",
        f"{row['offline_tokens_per_s']:.0f}",
        f"{row['wasted_ratio']:.2%}",
        f"{row['offline_contended_share']:.1%}",
        f"{row['starvation_gap']['grants']}",
    ]
