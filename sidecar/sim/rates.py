"""When online requests arrive: rates over time, and processes that draw the moments from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import cos, pi

import numpy as np
from numpy.random import Generator

Times = np.ndarray[tuple[int], np.dtype[np.float64]]
WEEK_H = 168.0

# Measured origin: 2,400 requests/h on 8 GPUs, that is half of it per engine of four; objective p99 < 800 ms.
ORIGIN_MEAN_PER_S = 1200 / 3600
DIURNAL_PEAK_PER_S = 2 * ORIGIN_MEAN_PER_S
# Measured with `--workload constant-R` (online-only, 70b-tp4-a100, 64 slots): at 6/s the p95 TTFT is twice the 172 ms
# of low load. Bursts run at 88 % of it, pauses at half of that.
KNEE_PER_S = 6.0
# Eight slots serve 13.5/s of online work alone (measured likewise).
OVERLOAD_PER_S = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSegment:
    """A stretch of time in which online requests arrive as a Poisson process of one rate."""

    begin_s: float
    end_s: float
    rate_per_s: float


def poisson(rng: Generator, segment: RateSegment) -> Times:
    """Return the moments of a Poisson process, in order."""
    length_s = segment.end_s - segment.begin_s
    count = rng.poisson(segment.rate_per_s * length_s)
    return np.sort(rng.uniform(segment.begin_s, segment.end_s, count))


def constant(rate_per_s: float) -> Callable[[Generator, float], Iterator[RateSegment]]:
    """One rate throughout."""

    def segments(_: Generator, hours: float) -> Iterator[RateSegment]:
        yield RateSegment(begin_s=0.0, end_s=hours * 3600, rate_per_s=rate_per_s)

    return segments


def renewals(rng: Generator, segment: RateSegment, gaps_cv: float) -> Times:
    """Return the moments of a process whose gaps are gamma with this coefficient of variation (BurstGPT's shape)."""
    shape, times, at_s = gaps_cv**-2, [np.empty(0)], segment.begin_s
    while at_s < segment.end_s:
        times.append(at_s + np.cumsum(rng.gamma(shape, 1 / (segment.rate_per_s * shape), 4096)))
        at_s = float(times[-1][-1])
    found = np.concatenate(times)
    return found[found < segment.end_s]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Requests that come `size` at once, `count` times, `every_s` apart."""

    count: int
    size: int
    every_s: float

    def times(self, hours: float) -> Times:
        """Return the moments within so many hours, in order."""
        found = np.repeat(np.arange(self.count) * self.every_s, self.size)
        return found[found < hours * 3600]


def step(first_per_s: float, then_per_s: float) -> Callable[[Generator, float], Iterator[RateSegment]]:
    """One rate for the first half of the run, another for the second."""

    def segments(_: Generator, hours: float) -> Iterator[RateSegment]:
        middle_s = hours * 1800
        yield RateSegment(begin_s=0.0, end_s=middle_s, rate_per_s=first_per_s)
        yield RateSegment(begin_s=middle_s, end_s=2 * middle_s, rate_per_s=then_per_s)

    return segments


def alternating(
    high_per_s: float, low_per_s: float, each_s: float
) -> Callable[[Generator, float], Iterator[RateSegment]]:
    """Bursts and pauses of equal, fixed length, beginning with a pause so that every onset is seen."""

    def segments(_: Generator, hours: float) -> Iterator[RateSegment]:
        begin, high = 0.0, False
        while begin < hours * 3600:
            end = min(begin + each_s, hours * 3600)
            yield RateSegment(begin_s=begin, end_s=end, rate_per_s=high_per_s if high else low_per_s)
            begin, high = end, not high

    return segments


def bursty(
    mean_per_s: Callable[[float], float], peak: float = 3.0, high_s: float = 60.0, low_s: float = 240.0
) -> Callable[[Generator, float], Iterator[RateSegment]]:
    """A two-state Markov-modulated Poisson process around `mean_per_s(time)`: bursts at `peak` times the mean.

    The low rate keeps the mean: with the default fifth of the time in bursts of 3x it is half the mean.
    """
    share = high_s / (high_s + low_s)
    low = max(0.0, (1 - share * peak) / (1 - share))

    def segments(rng: Generator, hours: float) -> Iterator[RateSegment]:
        begin, high = 0.0, bool(rng.random() < share)
        while begin < hours * 3600:
            end = min(begin + float(rng.exponential(high_s if high else low_s)), hours * 3600)
            yield RateSegment(begin_s=begin, end_s=end, rate_per_s=mean_per_s(begin) * (peak if high else low))
            begin, high = end, not high

    return segments


def _day_and_night(time_s: float) -> float:
    """Requests per second of the diurnal week: nights at a tenth of the working-day peak, weekends at half."""
    day, hour = divmod(time_s / 3600, 24)
    shape = 0.55 - 0.45 * cos(2 * pi * (hour - 3) / 24)  # least at 3 h (0.1), most at 15 h (1.0)
    return DIURNAL_PEAK_PER_S * shape * (0.5 if day % 7 >= 5 else 1.0)


def week(rng: Generator, hours: float) -> Iterator[RateSegment]:
    """A week of days and nights with bursts, in so many hours."""
    scale = WEEK_H / hours
    return bursty(lambda time_s: _day_and_night(time_s * scale))(rng, hours)
