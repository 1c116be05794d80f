"""How many items of each job have ended well or badly since this process began."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sidecar.offline.job_progress import JobKey, job_of
from sidecar.offline.owned_partition import FinishedItem

JOBS_MAX = 1_000  # producers choose their names; of more jobs the ones that were quiet for longest are forgotten


class JobCounts:
    """Counts what is committed. The same item counts on one process alone: on that which committed it."""

    def __init__(self) -> None:
        self._ends: dict[JobKey, Counter[str]] = {}  # in the order of their newest ends

    def committed(self, done: FinishedItem) -> None:
        """One more item has ended."""
        if (key := job_of(done.record)) is None:
            return
        counts = self._ends.pop(key, None) or Counter()
        counts["done" if done.outcome == "done" else "failed"] += 1
        self._ends[key] = counts
        if len(self._ends) > JOBS_MAX:
            del self._ends[next(iter(self._ends))]

    def of(self, tenant: str, job: str) -> dict[str, Any]:
        """`done` and `failed` of one job; both are unknown (None) while none of its items has ended here."""
        counts = self._ends.get((tenant, job))
        return {"done": None, "failed": None} if counts is None else {name: counts[name] for name in ("done", "failed")}

    def newest(self, count: int) -> list[tuple[JobKey, dict[str, int]]]:
        """Return `done` and `failed` of the jobs of which an item ended last, at most `count` of them."""
        newest = list(self._ends.items())[-count:]
        return [(key, {name: counts[name] for name in ("done", "failed")}) for key, counts in newest]
