"""The last dead letters, for the status page: where each item stands in its topic, and why it was given up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from sidecar.offline.job_progress import job_of
from sidecar.offline.owned_partition import FinishedItem

KEPT = 20


class LastDeadLetters:
    """Keeps those that were committed last. Never a value: it holds a prompt."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._last: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def committed(self, done: FinishedItem) -> None:
        """One more item has ended; one that ended well is none of ours."""
        if done.outcome == "done":
            return
        tenant, job = job_of(done.record) or ("", "")
        self._last.append(
            {
                "at": round(self._wall(), 3),
                "reason": done.reason,
                "source": done.record.source,
                "tenant": tenant,
                "job": job,
                "retries": done.retries,
            }
        )

    def document(self) -> list[dict[str, Any]]:
        """The newest first."""
        return list(reversed(self._last))
