"""The safety net that needs no model: how many offline rows were in flight while online's objectives held.

Additive increase while nobody is late, multiplicative decrease as soon as more are late than the objectives allow (as
TCP does it: Chiu and Jain, 1989). Before the first decrease there is no limit: a slot is taken back within some 30 ms.
"""

from __future__ import annotations

from collections import deque

QUIET_S = 1.0  # without a late request, before there is one row more; nothing grows so long after a decrease
USED = 0.8  # share of the rows that must be in use for it: what is not tried is not learnt
REQUESTS = 100  # the last ones, over which a share is late


class Lateness:
    """Whether more of the last requests missed an objective than its percentile allows."""

    __slots__ = ("_late", "_late_share_max", "_requests")

    def __init__(self, percentile: float) -> None:
        self._late_share_max = 1 - percentile / 100
        self._requests: deque[bool] = deque(maxlen=REQUESTS)
        self._late = 0

    def add(self, late: bool) -> bool:
        """Count one request that ended. Return True, and begin a new count, if it is late and one too many is."""
        if len(self._requests) == REQUESTS:
            self._late -= self._requests[0]
        self._requests.append(late)
        self._late += late
        if not late or self._late <= max(1, self._late_share_max * len(self._requests)):
            return False
        self._requests.clear()
        self._late = 0
        return True


class Aimd:
    """How many rows offline may have on one engine, by what happened to online."""

    __slots__ = ("_decreased_s", "_grow_s", "_most", "decreases", "rows")

    def __init__(self, rows_most: int) -> None:
        self._most = rows_most
        self.rows = rows_most
        self._grow_s = 0.0
        self._decreased_s = -1.0
        self.decreases = 0

    def tick(self, rows_used: int, now_s: float) -> None:
        """Time passes, and offline has so many rows."""
        if now_s < self._grow_s or self.rows >= self._most or rows_used < USED * self.rows:
            return
        self.rows = self.rows + 1
        self._grow_s = now_s + QUIET_S

    def violated(self, arrived_s: float, now_s: float) -> None:
        """Online misses its objective. Once per flight: who arrived before the last decrease did not see it yet."""
        if arrived_s < self._decreased_s:
            return
        self.rows = max(1, self.rows // 2)
        self._decreased_s, self._grow_s = now_s, now_s + QUIET_S
        self.decreases += 1
