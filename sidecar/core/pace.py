"""How fast one lane of a model gets on while somebody waits: what a full queue's retry hint follows."""

from __future__ import annotations

WEIGHT = 0.05  # of one more gap in the running mean: some twenty requests
STALLED = 10.0  # a gap that is so many times as long as usual is a standstill, and counts as it is
HINT_MIN_S, HINT_MAX_S = 0.1, 60.0  # sooner is no relief, and nobody plans for later
HINT_UNKNOWN_S = 1.0  # before anything was done


class Pace:
    """The mean time between two requests that are over, of those times in which others waited."""

    __slots__ = ("_gap_s", "_last_s")

    def __init__(self) -> None:
        self._gap_s = 0.0  # 0 = unknown
        self._last_s: float | None = None  # since when the next one is expected; None while nobody waits

    def waits(self, now_s: float) -> None:
        """Somebody waits from now on, if nobody did."""
        if self._last_s is None:
            self._last_s = now_s

    def nobody_waits(self) -> None:
        """What is over from now on says nothing of how long others would have to wait."""
        self._last_s = None

    def over(self, now_s: float) -> None:
        """Count one more request that is over, if others wait."""
        if self._last_s is not None:
            gap_s = now_s - self._last_s
            self._gap_s += (WEIGHT if self._gap_s else 1.0) * (gap_s - self._gap_s)
            self._last_s = now_s

    def gone_in_s(self, requests: int, now_s: float) -> float:
        """When so many requests will be over, in seconds from now, as far as a caller should be told."""
        since_s = now_s - self._last_s if self._last_s is not None else 0.0
        gap_s = since_s if since_s > STALLED * self._gap_s > 0 else self._gap_s
        if not gap_s:
            return HINT_UNKNOWN_S
        return round(min(max(requests * gap_s, HINT_MIN_S), HINT_MAX_S), 3)
