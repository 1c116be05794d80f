"""How often online work arrives, and what follows for the slots kept ready for it."""

from __future__ import annotations

from math import exp, sqrt

FAST_S, SLOW_S = 15.0, 300.0  # a burst is seen within seconds, a quiet spell is not taken for the end of the day
CALM_MIN, CALM_MAX = 0.5, 2.0
BUSY_PER_S = 2.0  # more are never usual: near its knee an engine is not calm between bursts (simulated)
QUANTILE = 0.985  # simulated: 0.99 costs 2 % more of the harvest for 2 ms of the median
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

    def calm(self, now_s: float) -> float:
        """How calm it is compared with the usual: above 1 in a lull, below 1 in a burst.

        What lengthens an iteration by x costs x per arrival, and gains the less the longer the iteration is already;
        the best length then falls with the square root of the rate. More than BUSY_PER_S are a burst that lasts.
        """
        elapsed_s = now_s - self._at_s
        fast, slow = self._fast * exp(-elapsed_s / FAST_S) / FAST_S, self._slow * exp(-elapsed_s / SLOW_S) / SLOW_S
        usual = min(slow, BUSY_PER_S)
        return min(max(sqrt(usual / fast), CALM_MIN), CALM_MAX) if fast > 0 else CALM_MAX


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
