"""How often online work arrives, and what follows for the slots kept ready for it."""

from __future__ import annotations

from math import exp

FAST_S, SLOW_S = 5.0, 300.0  # a burst is seen within seconds, a quiet spell is not taken for the end of the day
QUANTILE = 0.99
WINDOW_WORTH = 0.05  # a window that meets an arrival less often than this costs more than it gives


class ArrivalRate:
    """Online arrivals of one model: two decaying averages, of which the larger counts."""

    __slots__ = ("_at_s", "_fast", "_slow")

    def __init__(self) -> None:
        self._at_s = 0.0
        self._fast = 0.0
        self._slow = 0.0

    def note(self, now_s: float) -> None:
        """One more has arrived."""
        elapsed_s = now_s - self._at_s
        self._fast = self._fast * exp(-elapsed_s / FAST_S) + 1
        self._slow = self._slow * exp(-elapsed_s / SLOW_S) + 1
        self._at_s = now_s

    def per_s(self, now_s: float) -> float:
        """Arrivals per second as of now."""
        elapsed_s = now_s - self._at_s
        return max(self._fast * exp(-elapsed_s / FAST_S) / FAST_S, self._slow * exp(-elapsed_s / SLOW_S) / SLOW_S)


def poisson_quantile(mean: float, quantile: float = QUANTILE) -> int:
    """The least n such that a Poisson count of this mean is at most n with probability `quantile`."""
    term = cumulated = exp(-mean)
    count = 0
    while cumulated < quantile and count < 1000:
        count += 1
        term *= mean / count
        cumulated += term
    return count


def worth_waiting(rate_per_s: float, window_s: float) -> bool:
    """True if a slot kept for `window_s` meets an arrival often enough to pay."""
    return 1 - exp(-rate_per_s * window_s) >= WINDOW_WORTH
