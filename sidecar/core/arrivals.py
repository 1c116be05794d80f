"""How often online work arrives, and what follows for the slots kept ready for it."""

from __future__ import annotations

from math import exp

FAST_S, SLOW_S = 15.0, 300.0  # a burst is seen within seconds, a quiet spell is not taken for the end of the day
RECENT, FASTEST_S = 20.0, 5.0  # arrivals that the recent rate is of, if they come within FASTEST_S … FAST_S
QUANTILE = 0.985  # simulated: 0.99 costs 2 % more of the harvest for 2 ms of the median
WINDOW_WORTH = 0.05  # a window that meets an arrival less often than this costs more than it gives


class ArrivalRate:
    """Online arrivals of one model, as decaying averages over seconds and over minutes."""

    __slots__ = ("_at_s", "_fast", "_first_s", "_recent", "_slow", "recent_s")

    def __init__(self) -> None:
        self._at_s = 0.0
        self._first_s: float | None = None  # when one arrived first
        self._fast = 0.0
        self._recent = 0.0
        self.recent_s = FAST_S  # over which the recent rate fades
        self._slow = 0.0

    def note(self, now_s: float) -> None:
        """One more has arrived."""
        elapsed_s = now_s - self._at_s
        self._fast = self._fast * exp(-elapsed_s / FAST_S) + 1
        self._slow = self._slow * exp(-elapsed_s / SLOW_S) + 1
        self._recent *= exp(-elapsed_s / self.recent_s)
        self._at_s = now_s
        if self._first_s is None:
            self._first_s = now_s
        self.recent_s = min(FAST_S, max(FASTEST_S, RECENT / self.mean_per_s(now_s)))
        self._recent += 1 / self.recent_s

    def per_s(self, now_s: float) -> float:
        """Arrivals per second as of now."""
        elapsed_s = now_s - self._at_s
        return max(self._fast * exp(-elapsed_s / FAST_S) / FAST_S, self._slow * exp(-elapsed_s / SLOW_S) / SLOW_S)

    def mean_per_s(self, now_s: float) -> float:
        """The slow average alone, over the time since the first arrival if that is shorter."""
        if self._first_s is None:
            return 0.0
        known = 1 - exp(-max(now_s - self._first_s, FAST_S) / SLOW_S)
        return self._slow * exp(-(now_s - self._at_s) / SLOW_S) / (SLOW_S * known)

    def recent_per_s(self, now_s: float) -> float:
        """Arrivals per second over the last RECENT of them: a lull counts as soon as a burst."""
        return self._recent * exp(-(now_s - self._at_s) / self.recent_s)


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
