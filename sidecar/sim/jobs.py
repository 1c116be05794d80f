"""How jobs with deadlines fare in a run: when each ended, and what was said of it before.

A forecast is taken at the acceptance of a job and at each tenth of the time to its deadline, as an operator reads it
from the snapshot, and later compared with the end. Times are simulated seconds since the start of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from sidecar.core.deadlines import WINDOW_S, JobVerdict
from sidecar.core.events import Forecast
from sidecar.core.scheduler import Scheduler
from sidecar.sim.driver import Decides, SimulatedDriver
from sidecar.sim.progress import RequestProgress
from sidecar.sim.workloads import WorkloadJob

LOOKS = 10  # forecasts per job, spread over the time to its deadline
SAID_LATE = (JobVerdict.AT_RISK, JobVerdict.INFEASIBLE)


@dataclass(slots=True, kw_only=True)
class Kept:
    """One job, what became of it and what was said of it."""

    batch: WorkloadJob
    left: int
    in_time: int = 0  # items that were complete by the deadline
    incomplete: int = 0  # items that will never be complete
    ended_s: float = inf
    warned_s: float = inf  # when it was first said to be late, or at risk of it
    forecasts: list[tuple[float, float]] = field(default_factory=list)  # (P50, P90) as points in time


class JobWatch:
    """Watches the jobs of one run."""

    def __init__(self, batches: Sequence[WorkloadJob], scheduler: Decides) -> None:
        self.kept = {each.name: Kept(batch=each, left=each.items) for each in batches}
        self._scheduler = scheduler

    def plan(self, driver: SimulatedDriver) -> None:
        """Look at each job once it is judged with all its items, and then at each tenth of its time."""
        if not isinstance(self._scheduler, Scheduler):
            return
        for kept in self.kept.values():
            begin_s, span_s = kept.batch.accepted_s + WINDOW_S, kept.batch.deadline_s - kept.batch.accepted_s
            for number in range(LOOKS):
                driver.at(begin_s + number / LOOKS * span_s, partial(self._look, kept, driver))

    def _look(self, kept: Kept, driver: SimulatedDriver) -> None:
        assert isinstance(self._scheduler, Scheduler)
        now_s = driver.now_s
        for job in self._scheduler.snapshot().jobs:
            if job.job == kept.batch.name:
                p50_s, p90_s = (inf if each is None else now_s + each for each in (job.eta_p50_s, job.eta_p90_s))
                kept.forecasts.append((p50_s, p90_s))

    def told(self, forecast: Forecast, now_s: float) -> None:
        """The scheduler has changed its mind about a job."""
        kept = self.kept.get(forecast.job)
        if kept and forecast.verdict in SAID_LATE:
            kept.warned_s = min(kept.warned_s, now_s)

    def over(self, progress: RequestProgress) -> None:
        """An item is over: complete, or a dead letter whose time had come."""
        if kept := self.kept.get(progress.request.job):
            kept.left -= 1
            kept.incomplete += progress.outcome != "ended"
            kept.in_time += progress.outcome == "ended" and progress.finished_s <= kept.batch.deadline_s
            if not kept.left:
                kept.ended_s = progress.finished_s


def eta_figures(runs: Iterable[Iterable[Kept]]) -> dict[str, Any] | None:
    """Return how many of the jobs' ends came by the P50 and by the P90 that were said before; None if nothing was said.

    A forecast whose P90 was not known yet counts for nothing.
    """
    ended = [kept for run in runs for kept in run if kept.ended_s < inf]
    pairs = [(kept.ended_s, *each) for kept in ended for each in kept.forecasts if each[1] < inf]
    if not pairs:
        return None
    return {
        "p50_coverage": sum(end_s <= p50_s for end_s, p50_s, _ in pairs) / len(pairs),
        "p90_coverage": sum(end_s <= p90_s for end_s, _, p90_s in pairs) / len(pairs),
        "n": len(pairs),
    }


def deadline_figures(runs: Iterable[Iterable[Kept]]) -> dict[str, int] | None:
    """Jobs that were accepted and met their deadlines, and how many that missed it were named before; None if none."""
    kept = [each for run in runs for each in run]
    missed = [each for each in kept if each.ended_s > each.batch.deadline_s or each.incomplete]
    told = sum(each.warned_s < each.batch.deadline_s for each in missed)
    counts = {"accepted": len(kept), "met": len(kept) - len(missed), "at_risk_told_before_miss": told}
    return counts if kept else None


def item_figures(runs: Sequence[Sequence[Kept]]) -> dict[str, Any] | None:
    """Return how many items jobs had, how many met their deadline, and when the last one ended. None without jobs."""
    if not any(runs):
        return None
    last_s = [max(kept.ended_s for kept in run) for run in runs]
    return {
        "n": sum(kept.batch.items for run in runs for kept in run),
        "in_time": sum(kept.in_time for run in runs for kept in run),
        "done_s": sum(last_s) / len(last_s) if max(last_s) < inf else None,
    }


def spread_days(runs: Iterable[Iterable[Kept]], time_scale: float) -> float | None:
    """By how many days of the week the ends of the longest job differ from their mean, at most, over the seeds.

    None without jobs, or if one of them did not end in its run.
    """
    ends = [max(run, key=lambda each: each.batch.items).ended_s for run in map(list, runs) if run]
    if not ends or inf in ends:
        return None
    mean = sum(ends) / len(ends)
    return max(abs(each - mean) for each in ends) * time_scale / 86_400
