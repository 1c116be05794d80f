"""How fast offline gets on, and when so many tokens will be done: as in the last hour, or in that hour of last week.

Both scatter, so a forecast is an interval: P50 and P90 of a normal approximation in closed form, without a random
number. Whose tokens these are is the matter of `jobs.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf, sqrt
from typing import NamedTuple

WINDOW_S = 30.0  # of one sample of the rate
SAMPLES_MAX = 120  # an hour
# Samples per block: neighbouring ones are not independent. Bursts and pauses make a round of five minutes (simulated:
# with blocks of two minutes P90 covered 79 % of a week's afternoons); less will do until there are three such blocks.
BLOCK_MIN, BLOCK_MAX = 4, 10
BLOCKS_MIN = 3  # before that a spread would be a guess
WEEK_H, HOUR_S = 168, 3600.0
HOUR_SAMPLES_MIN = 20  # ten minutes of an hour say more about the rest of it than the same hour of last week
HOUR_WEIGHT = 0.3  # of one more week in what is known of an hour
HORIZON_H = 4 * WEEK_H  # beyond it a forecast says nothing
Z90 = 1.2816  # normal quantile of 0.9
BISECTIONS = 24  # of an hour: less than a millisecond of it


class JobVerdict(StrEnum):
    """Whether a job will be done in time, as of now."""

    NO_DEADLINE = "no deadline"
    UNKNOWN = "unknown"  # nothing was harvested yet, no request of it is known to the end, or there are too many jobs
    ON_TIME = "on time"  # in nine cases out of ten
    AT_RISK = "at risk"
    INFEASIBLE = "infeasible"  # even at the best rate that is known, and with all that urgency may add


@dataclass(frozen=True, slots=True, kw_only=True)
class Eta:
    """When, from now, in seconds; inf = not within four weeks, or not known."""

    p50_s: float
    p90_s: float


@dataclass(slots=True)
class Moments:
    """Mean and variance of what was noted (Welford's recurrence)."""

    count: int = 0
    mean: float = 0.0
    _squares: float = 0.0

    def note(self, value: float) -> None:
        """One more of them."""
        self.count += 1
        difference = value - self.mean
        self.mean += difference / self.count
        self._squares += difference * (value - self.mean)

    @property
    def variance(self) -> float:
        """0 for fewer than two."""
        return self._squares / (self.count - 1) if self.count > 1 else 0.0


class Ahead(NamedTuple):
    """What is expected from now until then."""

    until_s: float
    tokens: float
    alone_s: float  # seconds whose errors are independent of each other ...
    shared_s: float  # ... and those whose expectation is the same number, so that they err together

    def before(self, earlier: Ahead, share: float) -> Ahead:
        """At that share of the way back to `earlier`."""
        return Ahead(
            self.until_s + share * (earlier.until_s - self.until_s),
            self.tokens + share * (earlier.tokens - self.tokens),
            self.alone_s + share * (earlier.alone_s - self.alone_s),
            self.shared_s + share * (earlier.shared_s - self.shared_s),
        )


@dataclass(slots=True)
class Rate:
    """Offline tokens per second of one model: the last hour in samples, and each hour of the week in the mean."""

    week_s: float = WEEK_H * HOUR_S  # the period of the load; an hour below is a part of it
    samples: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    by_hour: list[float] = field(default_factory=lambda: [-1.0] * WEEK_H)  # -1 = never seen
    _errors: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))  # sample - what was expected
    _tokens: int = 0  # at the last sample
    _at_s: float = -inf
    _backlogged: bool = False
    _hour: list[float] = field(default_factory=list)  # samples of the hour that is running
    _hour_number: int = -1

    @property
    def hour_s(self) -> float:
        """A 168th of the week."""
        return self.week_s / WEEK_H

    def sample(self, tokens: int, now_s: float, *, backlogged: bool) -> None:
        """So many tokens were harvested since the start. What was slow for want of work does not count."""
        if self._backlogged and backlogged:
            rate = (tokens - self._tokens) / (now_s - self._at_s)
            number = self._number(now_s)
            if self.samples:
                self._errors.append(rate - self._expected(number, self.mean)[0])
            self.samples.append(rate)
            self._note_hour(rate, number)
        self._tokens, self._at_s, self._backlogged = tokens, now_s, backlogged

    def _number(self, now_s: float) -> int:
        """Of the hour, counted from the clock's zero, whenever that was: only the period matters."""
        return int(now_s // self.hour_s)

    def _note_hour(self, rate: float, number: int) -> None:
        if number != self._hour_number:
            if self._hour:
                index = self._hour_number % WEEK_H
                mean, known = sum(self._hour) / len(self._hour), self.by_hour[index]
                self.by_hour[index] = mean if known < 0 else known + HOUR_WEIGHT * (mean - known)
            self._hour, self._hour_number = [], number
        self._hour.append(rate)

    @property
    def mean(self) -> float:
        """Of the last hour; 0 = unknown."""
        return sum(self.samples) / len(self.samples) if self.samples else 0.0

    @property
    def best(self) -> float:
        """Of the samples of the last hour, and of the hours of the week."""
        return max(0.0, *self.samples, *self.by_hour)

    @property
    def spread(self) -> float | None:
        """Variance per second of what is harvested beside what was expected, from blocks; None with too few.

        Blown up by what the Student distribution has above the normal one at 0.9 (Cornish-Fisher, first term): the
        spread itself is only known from so many blocks.
        """
        errors = list(self._errors)
        size = min(BLOCK_MAX, len(errors) // BLOCKS_MIN)
        if size < BLOCK_MIN:
            return None
        blocks = [sum(errors[at : at + size]) / size for at in range(len(errors) % size, len(errors), size)]
        student = 1 + (Z90 * Z90 + 1) / (4 * len(blocks))
        return sum(each * each for each in blocks) / len(blocks) * size * WINDOW_S * student * student

    def outlook(self, now_s: float) -> list[Ahead]:
        """What is expected, hour by hour, as far ahead as a forecast says anything; empty without a sample."""
        ahead: list[Ahead] = []
        begin_s = tokens = alone_s = shared_s = 0.0
        first, hour_s = self._number(now_s), self.hour_s
        mean = self.mean
        week = [self._usual(number, mean) for number in range(first, first + WEEK_H)] if self.samples else []
        hours = week * (HORIZON_H // WEEK_H)
        hours[:1] = [self._expected(first, mean)] if self.samples else []
        for number, (rate, times) in enumerate(hours, first):
            end_s = (number + 1) * hour_s - now_s
            length_s = end_s - begin_s
            tokens += rate * length_s
            alone_s += length_s * (1 + 1 / times) if times else length_s
            shared_s += 0.0 if times else length_s
            ahead.append(Ahead(end_s, tokens, alone_s, shared_s))
            begin_s = end_s
        return ahead

    def p50_s(self, tokens: float, ahead: Sequence[Ahead]) -> float:
        """When so many tokens are harvested, in such an outlook."""
        return self._reached(tokens, 0.0, 0.0, ahead, 0.0)

    def p90_s(self, tokens: float, variance: float, ahead: Sequence[Ahead], spread: float | None) -> float:
        """When they are in nine cases out of ten, with the variance of that number; inf if the spread is unknown."""
        return inf if spread is None else self._reached(tokens, variance, spread, ahead, Z90)

    def _reached(self, tokens: float, variance: float, spread: float, ahead: Sequence[Ahead], z: float) -> float:
        """The first moment at which the harvest less z deviations is `tokens`: the hour, then inside of it.

        The deviations: of the harvest to come (grows with time), of the means it is expected from, and of the need.
        """
        known_s = max(len(self.samples) * WINDOW_S, WINDOW_S)

        def enough(at: Ahead) -> bool:
            scatter = spread * (at.alone_s + at.shared_s * at.shared_s / known_s)
            return at.tokens - z * sqrt(scatter + variance) >= tokens

        index = bisect_left(ahead, True, key=enough)
        if index == len(ahead):
            return inf
        later, earlier = ahead[index], ahead[index - 1] if index else Ahead(0.0, 0.0, 0.0, 0.0)
        low, high = 0.0, 1.0  # of the way from the end of the hour to its beginning
        for _ in range(BISECTIONS if z else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if enough(later.before(earlier, middle)) else (low, middle)
        if not z and later.tokens > earlier.tokens:
            low = (later.tokens - tokens) / (later.tokens - earlier.tokens)
        return later.before(earlier, low).until_s

    def _expected(self, number: int, mean: float) -> tuple[float, int]:
        """In that hour, and from how many such hours it is known: as seen in it so far, else as usual."""
        if number == self._hour_number and len(self._hour) >= HOUR_SAMPLES_MIN:
            return sum(self._hour) / len(self._hour), 1
        return self._usual(number, mean)

    def _usual(self, number: int, mean: float) -> tuple[float, int]:
        """In such an hour, and from how many it is known (0 = from the last hour, of that mean): as last week, else as
        at that time of other days, else as in the last hour."""
        known = self.by_hour[number % WEEK_H]
        if known >= 0:
            return known, 1
        days = [each for each in self.by_hour[number % 24 :: 24] if each >= 0]
        return (sum(days) / len(days), len(days)) if days else (mean, 0)
