"""Jobs and their deadlines: when each will be done, whether that is in time, and how urgent offline is because of it.

A job is what its producer calls one (`x-job`), per tenant. What it still needs is a number of items times what they
turned out to write. What it will get is the rate at which offline got on lately, or in the same hour of last week. Both
scatter, so a forecast is an interval: P50 and P90 of a normal approximation in closed form, without a random number.
P90 counts on the other tenants to bring more work when theirs is done; both add what the last items in flight take.
Urgency follows from laxity (as in Tidal's gateway): the time that is left minus the time that the work takes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heappop, heappush
from math import exp, inf, sqrt

from sidecar.core.work import Work

WINDOW_S = 30.0  # of one sample of the rate
SAMPLES_MAX = 120  # an hour
# Samples per block: neighbouring ones are not independent. Bursts and pauses make a round of five minutes (simulated:
# with blocks of two minutes P90 covered 79 % of a week's afternoons); less will do until there are three such blocks.
BLOCK_MIN, BLOCK_MAX = 4, 10
BLOCKS_MIN = 3  # before that a spread would be a guess
LENGTHS_PRIOR = 100  # items: until a job has written so many, those of all jobs count more; the short ones end first
WEEK_H, HOUR_S = 168, 3600.0
HOUR_SAMPLES_MIN = 20  # ten minutes of an hour say more about the rest of it than the same hour of last week
HOUR_WEIGHT = 0.3  # of one more week in what is known of an hour
HORIZON_H = 4 * WEEK_H  # beyond it a forecast says nothing
Z90 = 1.2816  # normal quantile of 0.9
# By how many deviations of an item's stay the last of some twenty in flight outlasts the mean: stays are lognormal.
LAST_P50, LAST_P90 = 2.0, 4.0
PRESENCE_MIN = 0.01  # a tenant with work that seldom is forgotten
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


@dataclass(frozen=True, slots=True)
class Ahead:
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
                self._errors.append(rate - self._expected(number)[0])
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
        first = self._number(now_s)
        for number in range(first, first + HORIZON_H if self.samples else first):
            end_s = (number + 1) * self.hour_s - now_s
            rate, times = self._expected(number)
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

    def p90_s(self, tokens: float, variance: float, ahead: Sequence[Ahead]) -> float:
        """When they are in nine cases out of ten, with the variance of that number; inf if the spread is unknown."""
        spread = self.spread
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
        earlier, later = ahead[index - 1] if index else Ahead(0.0, 0.0, 0.0, 0.0), ahead[index]
        low, high = 0.0, 1.0  # of the way back from the end of the hour
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if enough(later.before(earlier, middle)) else (low, middle)
        return later.before(earlier, low).until_s

    def _expected(self, number: int) -> tuple[float, int]:
        """In that hour, and from how many such hours it is known (0 = from the last hour): as seen in it so far, else
        as last week, else as at that time of other days, else as in the last hour."""
        if number == self._hour_number and len(self._hour) >= HOUR_SAMPLES_MIN:
            return sum(self._hour) / len(self._hour), 1
        known = self.by_hour[number % WEEK_H]
        if known >= 0:
            return known, 1
        days = [each for each in self.by_hour[number % 24 :: 24] if each >= 0]
        return (sum(days) / len(days), len(days)) if days else (self.mean, 0)


class Earliest:
    """The earliest of some deadlines, each of which may be there several times: a heap whose entries may be gone."""

    __slots__ = ("_counts", "_heap")

    def __init__(self) -> None:
        self._counts: dict[float, int] = {}
        self._heap: list[float] = []

    def add(self, deadline_s: float) -> None:
        """Add one more; inf is none."""
        if deadline_s < inf:
            if deadline_s not in self._counts:
                heappush(self._heap, deadline_s)
            self._counts[deadline_s] = self._counts.get(deadline_s, 0) + 1

    def remove(self, deadline_s: float) -> None:
        """Take one away that was added."""
        if deadline_s == inf:
            return
        self._counts[deadline_s] -= 1
        if not self._counts[deadline_s]:
            del self._counts[deadline_s]
        while self._heap and self._heap[0] not in self._counts:
            heappop(self._heap)

    @property
    def deadline_s(self) -> float:
        """The earliest that is left; inf if none is."""
        return self._heap[0] if self._heap else inf


@dataclass(slots=True, eq=False)
class Job:
    """What waits or runs under one name."""

    tenant: str
    name: str
    deadlines: Earliest = field(default_factory=Earliest)  # of the items that are alive
    items: int = 0  # alive
    lengths: Moments = field(default_factory=Moments)  # tokens that its items wrote
    verdict: Verdict = Verdict.UNKNOWN
    eta: Eta = field(default_factory=lambda: Eta(p50_s=inf, p90_s=inf))

    @property
    def deadline_s(self) -> float:
        """The earliest that an item of it, which is not over, has named; inf if none has."""
        return self.deadlines.deadline_s


@dataclass(frozen=True, slots=True)
class Share:
    """What a tenant has a right to, and what it asks for: tokens (inf = without end), and the variance of that."""

    weight: float
    tokens: float
    variance: float


class Jobs:
    """The jobs of one model, what is known of their lengths, and the rate they share."""

    __slots__ = ("_boost", "_horizon_s", "_jobs", "_lengths", "_presence", "_stays", "judged_s", "rate", "urgency")

    def __init__(self, horizon_s: float, boost: float = 1.0, week_s: float = WEEK_H * HOUR_S) -> None:
        self._horizon_s = horizon_s
        self._boost = boost if horizon_s else 1.0  # how many times the rate may be, where offline lives from its turns
        self._jobs: dict[tuple[str, str], Job] = {}
        self._lengths = Moments()  # of all jobs: what a new one is taken for
        self._presence: dict[str, float] = {}  # share of the last days in which a tenant had work
        self._stays = Moments()  # seconds from an item's first token to its last
        self.rate = Rate(week_s)
        self.urgency = 0.0  # 0 … 1, of the most urgent job
        self.judged_s = 0.0  # when the forecasts were made

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
        job.deadlines.add(work.deadline_s)
        return job, new

    def left(self, job: Job, deadline_s: float, output_tokens: int, stay_s: float) -> None:
        """An item of `job`, with that deadline, is gone; it wrote so many tokens, in so many seconds; 0 if it did not
        get to its end: how long it would have become is not known then."""
        job.items -= 1
        job.deadlines.remove(deadline_s)
        if output_tokens:
            job.lengths.note(output_tokens)
            self._lengths.note(output_tokens)
            self._stays.note(stay_s)
        if not job.items:
            self._jobs.pop((job.tenant, job.name), None)

    def judge(self, now_s: float, weights: Callable[[str], float]) -> list[Job]:
        """Forecast every job anew and set the urgency; those whose verdict is another one than before."""
        changed: list[Job] = []
        ahead, outlook = self._ahead(), self.rate.outlook(now_s)
        shares = self._shares(weights)
        lasting = self._lasting(weights, now_s)
        self.judged_s, self.urgency = now_s, 0.0
        for job, (tokens, variance) in ahead.items():
            job.eta = Eta(p50_s=inf, p90_s=inf)
            if tokens:
                p50_s = self.rate.p50_s(_in_all(job.tenant, tokens, variance, shares)[0], outlook)
                p90_s = self.rate.p90_s(*_in_all(job.tenant, tokens, variance, lasting), outlook)
                job.eta = Eta(p50_s=p50_s + self._last(LAST_P50), p90_s=p90_s + self._last(LAST_P90))
            verdict = self._verdict(job, tokens, now_s)
            if verdict is not job.verdict:
                job.verdict = verdict
                changed.append(job)
            self.urgency = max(self.urgency, self._urgency(job, now_s))
        return changed

    def _ahead(self) -> dict[Job, tuple[float, float]]:
        """By deadline: what the tenant needs until that job is done, (tokens, variance), jobs before it included."""
        sums: dict[str, tuple[float, float]] = {}
        ahead: dict[Job, tuple[float, float]] = {}
        for job in sorted(self, key=lambda each: (each.deadline_s, each.tenant, each.name)):
            tokens, variance = sums.get(job.tenant, (0.0, 0.0))
            need = self._need(job)
            ahead[job] = sums[job.tenant] = (tokens + need[0], variance + need[1])
        return ahead

    def _shares(self, weights: Callable[[str], float]) -> dict[str, Share]:
        """What each tenant asks for. Items without the name of a job are taken for a stream that never ends."""
        shares: dict[str, Share] = {}
        for job in self:
            tokens, variance = self._need(job) if job.name else (inf, 0.0)
            share = shares.get(job.tenant, Share(weights(job.tenant), 0.0, 0.0))
            shares[job.tenant] = Share(share.weight, share.tokens + tokens, share.variance + variance)
        return shares

    def _lasting(self, weights: Callable[[str], float], now_s: float) -> dict[str, Share]:
        """As if nobody's work ended, and who has none now had it as often as in the last days: a tenant that is done
        may bring the next job, of which nothing is known."""
        here = {job.tenant for job in self}
        step = 1 - exp(-(now_s - self.judged_s) / (self.rate.week_s / 7))
        for tenant in here | self._presence.keys():
            known = self._presence.get(tenant, 0.0)
            self._presence[tenant] = known + step * ((tenant in here) - known)
        often = sorted(self._presence.items(), key=lambda each: each[1], reverse=True)[:JOBS_MAX]
        self._presence = {tenant: share for tenant, share in often if share > PRESENCE_MIN}
        lasting = {tenant: Share(weights(tenant) * share, inf, 0.0) for tenant, share in self._presence.items()}
        return lasting | {tenant: Share(weights(tenant), inf, 0.0) for tenant in here}

    def _need(self, job: Job) -> tuple[float, float]:
        """Tokens that `job` still needs, and the variance of that; what those in flight wrote is not subtracted."""
        own, others = job.lengths, self._lengths
        share = own.count / (own.count + LENGTHS_PRIOR)
        mean = share * own.mean + (1 - share) * others.mean
        return job.items * mean, job.items * (share * own.variance + (1 - share) * others.variance)

    def _last(self, deviations: float) -> float:
        """How much longer the last items of a job take than the tokens in all."""
        return self._stays.mean + deviations * sqrt(self._stays.variance)

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


def _in_all(tenant: str, tokens: float, variance: float, shares: Mapping[str, Share]) -> tuple[float, float]:
    """What all tenants together will have harvested when `tenant` has its `tokens`, with the variance of that.

    Meanwhile each gets as much per weight, or all it asks for if that is less (generalised processor sharing).
    """
    per_weight = tokens / shares[tenant].weight
    total, scatter, weight = 0.0, 0.0, 0.0
    for each in shares.values():
        if each.tokens <= each.weight * per_weight and each is not shares[tenant]:
            total += each.tokens
            scatter += each.variance
        else:
            total += each.weight * per_weight
            weight += each.weight
    return total, scatter + variance * (weight / shares[tenant].weight) ** 2
