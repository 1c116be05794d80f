"""Yield: while online is resident, or expected in a moment, offline keeps only so many rows and starts nothing beyond.

On a wide engine decode is bound by memory, so offline rows cost nearly nothing until an online request is there; then
each of them lengthens every iteration that the request waits for.
"""

from __future__ import annotations

from math import inf
from typing import Literal

from sidecar.core.guard import Guard


class YieldLimit:
    """How many rows offline may have on one engine now."""

    __slots__ = ("_guard", "_hold_s", "_rows", "until_s")

    def __init__(self, rows: int | Literal["auto", "never"], hold_s: float, guard: Guard) -> None:
        """The guard is kept whole: a bound method would not be read back from a recording."""
        self._rows = inf if rows == "never" else rows
        self._guard = guard
        self._hold_s = hold_s
        self.until_s = -inf  # the hold after the last online request ends here

    def rows_max(self, online_slots: int, now_s: float) -> float:
        """inf unless offline has to yield now."""
        if not online_slots and now_s >= self.until_s:
            return inf
        return self._guard.rows_max(max(1, online_slots)) if self._rows == "auto" else float(self._rows)

    def online_left(self, rate_per_s: float, now_s: float) -> None:
        """The last online request is gone: hold on until the next is expected, if that is within the hold.

        Of gaps between arrivals that are exponential this leaves offline the share 1/e. Without it offline would get
        next to nothing where requests are frequent, because a hold that ends never would cost it every gap.
        """
        if rate_per_s * self._hold_s >= 1:
            self.until_s = now_s + 1 / rate_per_s
