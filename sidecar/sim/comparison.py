"""Policies × seeds of one workload: run, in one process or in several, and put into figures."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import active_children, get_context
from typing import Any

from sidecar.sim.even_pacing import even_paces, harvest_at
from sidecar.sim.figures import MeasurementError
from sidecar.sim.policies import CEILINGS, Policy
from sidecar.sim.report import figures
from sidecar.sim.simulation_run import Result, RunPlan, run

REFERENCE = "online-only"
CEILING_HOURS = 1.0  # the tail of one hour is steady enough: its spread over seeds is under 1 %

EVEN_PRICES = (1.05, 1.10, 1.15, 1.25, 1.5)  # of which even pacing is reckoned

Job = tuple[RunPlan, Policy]


def compare(name: str, plan: RunPlan, chosen: Sequence[Policy], seeds: Sequence[int], processes: int) -> dict[str, Any]:
    """Return the figures of every policy over all seeds of one workload, which is called `name` on stderr.

    The reference must be among them. The ceilings run too: of a seed, the better one counts.
    """
    jobs = [(replace(plan, seed=seed), policy) for policy in chosen for seed in seeds]
    short = replace(plan, hours=min(plan.hours, CEILING_HOURS), faults=False)
    jobs += [(replace(short, seed=seed), policy) for policy in CEILINGS for seed in seeds]
    runs = _run_all(name, jobs, processes)
    results = dict(zip([(policy.name, each.seed) for each, policy in jobs], runs, strict=True))
    alone = {each.name: [results[each.name, seed].offline_tokens_per_s for seed in seeds] for each in CEILINGS}
    ceilings = [max(both) for both in zip(*alone.values(), strict=True)]
    reference = [results[REFERENCE, seed] for seed in seeds]
    rows = {
        policy.name: figures(plan, policy, reference, [results[policy.name, seed] for seed in seeds], ceilings)
        for policy in chosen
    }
    return {
        "hours": plan.hours,
        "profile": plan.profile.name,
        "slots": plan.slots,
        "time_scale": plan.workload.time_scale(plan.hours),
        "ceilings_tokens_per_s": {name: sum(each) / len(seeds) for name, each in alone.items()},
        "even_pacing": _even_pacing(plan, reference, sum(ceilings) / len(seeds)),
        "simulated_requests": sum(each.requests for each in results.values()),
        "policies": rows,
    }


def _even_pacing(plan: RunPlan, reference: Sequence[Result], ceiling_per_s: float) -> list[dict[str, float]]:
    """Return what even pacing would harvest at some prices, by arithmetic on the profile and on online alone."""
    idle_ratio = sum(each.idle_ratio for each in reference) / len(reference)
    occupied = plan.slots * sum(each.busy_ratio for each in reference) / len(reference)
    paces = even_paces(
        plan.profile,
        plan.workload.mix,
        plan.slots,
        online_rows=occupied / max(1e-9, 1 - idle_ratio),
        idle_ratio=idle_ratio,
        ceiling_per_s=max(1e-9, ceiling_per_s),
    )
    return [{"e2e_ratio": price, "harvest": harvest_at(paces, price)} for price in EVEN_PRICES]


def _run_all(name: str, jobs: Sequence[Job], processes: int) -> list[Result]:
    if processes > 1:
        # Spawned, not forked: a child that forks off beside the threads of a gRPC client may crash in its first call.
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            try:
                return list(_told(name, _submitted(pool, jobs), jobs))
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in active_children():
                    child.terminate()
                raise
            except BrokenExecutor as error:
                raise MeasurementError("a process of the simulation died; was there memory for all --jobs?") from error
    return list(_told(name, (run(plan, policy) for plan, policy in jobs), jobs))


def _submitted(pool: ProcessPoolExecutor, jobs: Sequence[Job]) -> Iterable[Result]:
    """The results to come. The children ignore Ctrl-C from their first instruction on: we end them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return pool.map(run, *zip(*jobs, strict=True))
    finally:
        signal.signal(signal.SIGINT, before)


def _told(name: str, results: Iterable[Result], jobs: Sequence[Job]) -> Iterable[Result]:
    """The results as they come, with a line of progress for each on stderr."""
    for number, ((plan, policy), result) in enumerate(zip(jobs, results, strict=False), 1):
        where = f"{name}, {policy.name}, seed {plan.seed}"
        print(f"{number}/{len(jobs)} {where}: {result.requests} requests", file=sys.stderr)
        yield result
