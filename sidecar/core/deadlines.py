"""Jobs and their deadlines: when each will be done, whether that is in time, and how urgent offline is because of it.

A job is what its producer calls one (`x-job`), per tenant. What it still needs is a number of items times what they
turned out to write. What it will get is the rate at which offline got on lately, or in the same hour of last week. Both
scatter, so a forecast is an interval: P50 and P90 of a normal approximation in closed form, without a random number.
Urgency follows from laxity (as in Tidal's gateway): the time that is left minus the time that the work takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf, sqrt

from sidecar.core.work import Work

WINDOW_S = 30.0  # of one sample of the rate
SAMPLES_MAX = 120  # an hour
BLOCK = 4  # samples per block: bursts last a minute or two, so neighbouring samples are not independent
BLOCKS_MIN = 3  # before that a spread would be a guess
WEEK_H, HOUR_S = 168, 3600.0
HOUR_SAMPLES_MIN = 20  # ten minutes of an hour say more about the rest of it than the same hour of last week
HOUR_WEIGHT = 0.3  # of one more week in what is known of an hour
HORIZON_H = 4 * WEEK_H  # beyond it a forecast says nothing
Z90 = 1.2816  # normal quantile of 0.9
BISECTIONS = 32  # of an hour: a microsecond
JOBS_MAX = 256  # per model; the items of further ones count together, because producers choose the names


class Verdict(StrEnum):
    """Whether a job will be done in time, as of now."""

    NO_DEADLINE = "no deadline"
    UNKNOWN = "unknown"  # nothing was harvested yet, or no item of it is known to the end
    ON_TIME = "on time"  # in nine cases out of ten
    AT_RISK = "at risk"
    INFEASIBLE = "infeasible"  # even at the best rate that is known, and with all that urgency may add


@dataclass(frozen=True, slots=True, kw_only=True)
class Eta:
    """When, from now, in seconds; inf = not within four weeks, or not known."""

    p50_s: float
    p90_s: float


@dataclass(slots=True)
class Lengths:
    """Mean and variance of how many tokens items wrote (Welford's recurrence)."""

    count: int = 0
    mean: float = 0.0
    _squares: float = 0.0

    def note(self, tokens: int) -> None:
        """One more item is complete."""
        self.count += 1
        difference = tokens - self.mean
        self.mean += difference / self.count
        self._squares += difference * (tokens - self.mean)

    @property
    def variance(self) -> float:
        """0 for fewer than two."""
        return self._squares / (self.count - 1) if self.count > 1 else 0.0


@dataclass(slots=True)
class Rate:
    """Offline tokens per second of one model: the last hour in samples, and each hour of the week in the mean."""

    samples: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    by_hour: list[float] = field(default_factory=lambda: [-1.0] * WEEK_H)  # -1 = never seen
    _tokens: int = 0  # at the last sample
    _at_s: float = -inf
    _backlogged: bool = False
    _hour: list[float] = field(default_factory=list)  # samples of the hour that is running
    _hour_index: int = -1

    def sample(self, tokens: int, now_s: float, *, backlogged: bool) -> None:
        """So many tokens were harvested since the start. What was slow for want of work does not count."""
        if self._backlogged and backlogged:
            rate = (tokens - self._tokens) / (now_s - self._at_s)
            self.samples.append(rate)
            self._note_hour(rate, now_s)
        self._tokens, self._at_s, self._backlogged = tokens, now_s, backlogged

    def _note_hour(self, rate: float, now_s: float) -> None:
        index = _hour_of_week(now_s)
        if index != self._hour_index:
            if self._hour:
                mean, known = sum(self._hour) / len(self._hour), self.by_hour[self._hour_index]
                self.by_hour[self._hour_index] = mean if known < 0 else known + HOUR_WEIGHT * (mean - known)
            self._hour, self._hour_index = [], index
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
        """Variance per second of what is harvested, from the means of blocks; None with too few."""
        samples = list(self.samples)
        blocks = [sum(samples[at : at + BLOCK]) / BLOCK for at in range(len(samples) % BLOCK, len(samples), BLOCK)]
        if len(blocks) < BLOCKS_MIN:
            return None
        mean = sum(blocks) / len(blocks)
        return sum((each - mean) ** 2 for each in blocks) / (len(blocks) - 1) * BLOCK * WINDOW_S

    def eta(self, tokens: float, variance: float, now_s: float, share: float = 1.0) -> Eta:
        """When so many tokens (with the variance of that number) are harvested, at a share of the rate."""
        spread = self.spread
        p90_s = inf if spread is None else self._reached(tokens, variance, spread, now_s, share, Z90)
        return Eta(p50_s=self._reached(tokens, 0.0, 0.0, now_s, share, 0.0), p90_s=p90_s)

    def _reached(self, tokens: float, variance: float, spread: float, now_s: float, share: float, z: float) -> float:
        """The first moment at which the harvest less z deviations is `tokens`: hour by hour, then inside the hour.

        The deviations: of the harvest to come (grows with time), of the mean it is expected from, and of the need.
        """
        known_s, begin_s, got = max(len(self.samples) * WINDOW_S, WINDOW_S), 0.0, 0.0

        def surplus(when_s: float, harvest: float) -> float:
            scatter = spread * share * share * (when_s + when_s * when_s / known_s)
            return harvest - z * sqrt(scatter + variance) - tokens

        for _ in range(HORIZON_H if self.samples else 0):
            end_s = begin_s + HOUR_S - (now_s + begin_s) % HOUR_S
            rate = self._expected(now_s + begin_s) * share
            if surplus(end_s, got + rate * (end_s - begin_s)) >= 0:
                low_s, high_s = begin_s, end_s
                for _ in range(BISECTIONS):
                    middle_s = (low_s + high_s) / 2
                    enough = surplus(middle_s, got + rate * (middle_s - begin_s)) >= 0
                    low_s, high_s = (low_s, middle_s) if enough else (middle_s, high_s)
                return high_s
            begin_s, got = end_s, got + rate * (end_s - begin_s)
        return inf

    def _expected(self, when_s: float) -> float:
        """In the hour of `when_s`: as seen in it so far, else as last week, else as in the last hour."""
        index = _hour_of_week(when_s)
        if index == self._hour_index and len(self._hour) >= HOUR_SAMPLES_MIN:
            return sum(self._hour) / len(self._hour)
        known = self.by_hour[index]
        return self.mean if known < 0 else known


@dataclass(slots=True, eq=False)
class Job:
    """What waits or runs under one name."""

    tenant: str
    name: str
    deadline_s: float = inf  # the earliest that an item of it named
    items: int = 0  # alive
    lengths: Lengths = field(default_factory=Lengths)
    verdict: Verdict = Verdict.UNKNOWN
    eta: Eta = field(default_factory=lambda: Eta(p50_s=inf, p90_s=inf))


class Jobs:
    """The jobs of one model, what is known of their lengths, and the rate they share."""

    __slots__ = ("_boost", "_horizon_s", "_jobs", "_lengths", "rate", "urgency")

    def __init__(self, horizon_s: float, boost: float = 1.0) -> None:
        self._horizon_s = horizon_s
        self._boost = boost if horizon_s else 1.0  # how many times the rate may be, where offline lives from its turns
        self._jobs: dict[tuple[str, str], Job] = {}
        self._lengths = Lengths()  # of all jobs: what a new one is taken for
        self.rate = Rate()
        self.urgency = 0.0  # 0 … 1, of the most urgent job

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def arrived(self, work: Work) -> tuple[Job, bool]:
        """The job of `work`, which has one more item now; True if it is new."""
        key = (work.tenant, work.job)
        job = self._jobs.get(key)
        if new := job is None:
            if len(self._jobs) >= JOBS_MAX:
                key = ("", "")
            job = self._jobs.setdefault(key, Job(*key))
        assert job is not None
        job.items += 1
        job.deadline_s = min(job.deadline_s, work.deadline_s)
        return job, new

    def left(self, job: Job, output_tokens: int) -> None:
        """An item of `job` is gone; it wrote so many tokens, 0 if it did not get that far."""
        job.items -= 1
        if output_tokens:
            job.lengths.note(output_tokens)
            self._lengths.note(output_tokens)
        if not job.items:
            self._jobs.pop((job.tenant, job.name), None)

    def judge(self, now_s: float, weights: Callable[[str], float]) -> list[Job]:
        """Forecast every job anew and set the urgency; those whose verdict is another one than before."""
        weight_sum = sum(weights(tenant) for tenant in dict.fromkeys(job.tenant for job in self))
        changed: list[Job] = []
        ahead: dict[str, tuple[float, float]] = {}  # need of the tenant's jobs with earlier deadlines, and of this one
        self.urgency = 0.0
        for job in sorted(self, key=lambda each: (each.deadline_s, each.tenant, each.name)):
            ahead[job.tenant] = _plus(ahead.get(job.tenant, (0.0, 0.0)), self._need(job))
            share = weights(job.tenant) / weight_sum
            job.eta = self._forecast(ahead[job.tenant], share, now_s)
            verdict = self._verdict(job, ahead[job.tenant][0], now_s)
            if verdict is not job.verdict:
                job.verdict = verdict
                changed.append(job)
            self.urgency = max(self.urgency, self._urgency(job, now_s))
        return changed

    def _need(self, job: Job) -> tuple[float, float]:
        """Tokens that `job` still needs, and the variance of that; what those in flight wrote is not subtracted."""
        lengths = job.lengths if job.lengths.count > 1 else self._lengths
        return job.items * lengths.mean, job.items * lengths.variance

    def _forecast(self, need: tuple[float, float], share: float, now_s: float) -> Eta:
        if not need[0]:
            return Eta(p50_s=inf, p90_s=inf)
        return self.rate.eta(*need, now_s, share)

    def _verdict(self, job: Job, tokens: float, now_s: float) -> Verdict:
        left_s = job.deadline_s - now_s
        if left_s == inf:
            return Verdict.NO_DEADLINE
        if left_s <= 0:
            return Verdict.INFEASIBLE
        if not tokens or not self.rate.samples:
            return Verdict.UNKNOWN
        if tokens > self.rate.best * self._boost * left_s:
            return Verdict.INFEASIBLE
        return Verdict.ON_TIME if job.eta.p90_s <= left_s else Verdict.AT_RISK

    def _urgency(self, job: Job, now_s: float) -> float:
        """1 - laxity / horizon, inside 0 … 1. The horizon is fixed: a share of the time left would never be urgent."""
        if not self._horizon_s or job.deadline_s == inf or job.verdict is Verdict.UNKNOWN:
            return 0.0
        laxity_s = job.deadline_s - now_s - job.eta.p50_s
        return min(1.0, max(0.0, 1 - laxity_s / self._horizon_s))


def _plus(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] + other[0], one[1] + other[1]


def _hour_of_week(now_s: float) -> int:
    """Counted from the clock's zero, whenever that was: only the period matters."""
    return int(now_s // HOUR_S) % WEEK_H
