"""Jobs: which will be done in time, and how urgent offline is because of the others.

A job is what its producer calls one (`x-job`), per tenant. What it still needs is a number of requests times what they
turned out to write; when that is done is the matter of `deadlines.py`. P90 counts on the other tenants to bring more
work when theirs is done; both add what the last requests in flight take. Urgency follows from laxity (as in Tidal's
gateway): the time that is left minus the time that the work takes.

Producers choose the names, so nothing here grows with their number without a bound. Beside JOBS_MAX named jobs, and the
unnamed requests of TENANTS_MAX tenants, all others count together: they are served like any, and their load is known,
but nothing is forecast for them. And a look makes at most LOOK_JOBS forecasts, however many jobs there are: first of
those that are new, then of the others in turn.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import exp, inf, sqrt

from sidecar.core.deadlines import HOUR_S, WEEK_H, Eta, JobVerdict, Moments, Rate
from sidecar.core.request import Request

JOBS_MAX = 256  # named ones per model
TENANTS_MAX = 256  # with requests that name no job, per model
LOOK_JOBS = 8  # forecasts per look: half a millisecond
LOOK_S = 0.1  # between two looks while forecasts are owed
LENGTHS_PRIOR = 100  # requests: until a job has written so many, those of all jobs count more; the short ones end first
# By how many deviations of a request's stay the last of some twenty in flight outlasts the mean: stays are lognormal.
LAST_P50, LAST_P90 = 2.0, 4.0
PRESENCE_MIN = 0.01  # a tenant with work that seldom is forgotten
OTHERS = ("", "")  # the key of those beyond the bounds


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
    deadlines: Earliest = field(default_factory=Earliest)  # of the requests that are alive
    items: int = 0  # alive
    lengths: Moments = field(default_factory=Moments)  # tokens that its requests wrote
    verdict: JobVerdict = JobVerdict.UNKNOWN
    eta: Eta = field(default_factory=lambda: Eta(p50_s=inf, p90_s=inf))
    judged_s: float = 0.0  # when that was said
    urgency: float = 0.0  # 0 … 1

    @property
    def deadline_s(self) -> float:
        """The earliest that a request of it, which is not over, has named; inf if none has."""
        return self.deadlines.deadline_s

    @property
    def key(self) -> tuple[str, str]:
        """What its requests count under until they leave; one that came beyond the bounds is counted there to its
        end."""
        return self.tenant, self.name

    @property
    def forecast(self) -> bool:
        """True unless it stands for those beyond the bounds."""
        return self.key != OTHERS


@dataclass(frozen=True, slots=True)
class TenantShare:
    """What a tenant has a right to, and what it asks for: tokens (inf = without end), and the variance of that."""

    weight: float
    tokens: float
    variance: float


class Sharing:
    """How tenants share a rate: each gets as much per weight, or all it asks for (generalised processor sharing)."""

    def __init__(self, shares: Mapping[str, TenantShare]) -> None:
        self._shares = shares
        ordered = sorted(shares.values(), key=lambda each: each.tokens / each.weight)
        self._full_at = [each.tokens / each.weight for each in ordered]  # per weight: from here on it asks for no more
        self._sums = [TenantShare(0.0, 0.0, 0.0)]  # of the first ones
        for each in ordered:
            last = self._sums[-1]
            self._sums.append(
                TenantShare(last.weight + each.weight, last.tokens + each.tokens, last.variance + each.variance)
            )

    def in_all(self, tenant: str, tokens: float, variance: float) -> tuple[float, float]:
        """What all together will have harvested when `tenant` has its `tokens`, with the variance of that."""
        own = self._shares[tenant]
        per_weight = tokens / own.weight
        full = self._sums[bisect_right(self._full_at, per_weight)]
        weight, total, scatter = self._sums[-1].weight - full.weight, full.tokens, full.variance
        if own.tokens / own.weight <= per_weight:  # it is among the full ones, and counts as what it has by then
            weight, total, scatter = weight + own.weight, total - own.tokens, scatter - own.variance
        return total + weight * per_weight, scatter + variance * (weight / own.weight) ** 2


class Jobs:
    """The jobs of one model, what is known of their lengths, and the rate they share."""

    __slots__ = (
        *("_boost", "_horizon_s", "_jobs", "_lengths", "_named", "_new", "_presence", "_shared_s", "_stays", "_turn"),
        *("forecasts", "look_from_s", "rate", "urgency"),
    )

    def __init__(self, horizon_s: float, boost: float = 1.0, week_s: float = WEEK_H * HOUR_S) -> None:
        self._horizon_s = horizon_s
        # How many times the rate may be, where offline has only its reserved dispatches.
        self._boost = boost if horizon_s else 1.0
        self._jobs: dict[tuple[str, str], Job] = {}
        self._named = 0  # of them, those with a name
        self._new: deque[Job] = deque()  # never forecast
        self._turn: deque[Job] = deque()  # to be forecast again, in turn
        self._lengths = Moments()  # of all jobs: what a new one is taken for
        self._presence: dict[str, float] = {}  # share of the last days in which a tenant had work
        self._shared_s = 0.0  # as of when
        self._stays = Moments()  # seconds from a request's first token to its last
        self.rate = Rate(week_s)
        self.urgency = 0.0  # 0 … 1, of the most urgent job
        self.forecasts = 0  # made so far
        self.look_from_s = -inf  # the next look is worth its price from here on

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def named(self, tenant: str, name: str) -> Job | None:
        """The job of that name, if it counts by itself."""
        return self._jobs.get((tenant, name))

    def arrived(self, request: Request) -> tuple[Job, bool]:
        """The job of `request`, which has one more request now; True if a forecast is owed for it at the next look."""
        key = (request.tenant, request.job)
        job = self._jobs.get(key)
        new = job is None and self._has_room(request.job)
        if job is None:
            if not new:
                key = OTHERS
            job = self._jobs.setdefault(key, Job(*key))
        if new:
            self._named += request.job != ""
            self._new.append(job)
        job.items += 1
        job.deadlines.add(request.deadline_s)
        return job, new

    def _has_room(self, name: str) -> bool:
        if name:
            return self._named < JOBS_MAX
        return len(self._jobs) - self._named < TENANTS_MAX

    def left(self, key: tuple[str, str], deadline_s: float, output_tokens: int, stay_s: float) -> None:
        """A request that counted under `key`, with that deadline, is gone; it wrote so many tokens, in so many seconds;
        0 if it did not get to its end: how long it would have become is not known then."""
        job = self._jobs[key]
        job.items -= 1
        job.deadlines.remove(deadline_s)
        if output_tokens:
            job.lengths.note(output_tokens)
            self._lengths.note(output_tokens)
            self._stays.note(stay_s)
        if not job.items:
            self._named -= job.name != ""
            del self._jobs[key]

    # ---- forecasts ---------------------------------------------------------------------------------------------------

    @property
    def owed(self) -> bool:
        """True if a look would make a forecast."""
        return bool(self._new or self._turn)

    def begin_round(self) -> None:
        """Every job is to be forecast anew, unless some still are since the last time."""
        if not self._turn:
            first = set(self._new)
            self._turn.extend(job for job in self if job.forecast and job not in first)

    def look(self, now_s: float, weights: Callable[[str], float]) -> list[Job]:
        """Forecast the jobs that are next, and set the urgency; those whose verdict is another one than before."""
        self.look_from_s = now_s + LOOK_S
        chosen = self._chosen()
        changed: list[Job] = []
        if chosen:
            ahead, outlook, spread = self._ahead(), self.rate.outlook(now_s), self.rate.spread
            shares, lasting = Sharing(self._shares(weights)), Sharing(self._lasting(weights, now_s))
            for job in chosen:
                tokens, variance = ahead[job]
                job.eta = Eta(p50_s=inf, p90_s=inf)
                if tokens:
                    p50_s = self.rate.p50_s(shares.in_all(job.tenant, tokens, variance)[0], outlook)
                    p90_s = self.rate.p90_s(*lasting.in_all(job.tenant, tokens, variance), outlook, spread)
                    job.eta = Eta(p50_s=p50_s + self._last(LAST_P50), p90_s=p90_s + self._last(LAST_P90))
                verdict = self._verdict(job, tokens, now_s)
                if verdict is not job.verdict:
                    job.verdict = verdict
                    changed.append(job)
                job.judged_s, job.urgency = now_s, self._urgency(job, now_s)
        self.forecasts += len(chosen)
        self.urgency = max((job.urgency for job in self), default=0.0)
        return changed

    def _chosen(self) -> list[Job]:
        """The next LOOK_JOBS that are still there: the new ones first."""
        chosen: list[Job] = []
        for queue in (self._new, self._turn):
            while queue and len(chosen) < LOOK_JOBS:
                job = queue.popleft()
                if job.items and job not in chosen:
                    chosen.append(job)
        return chosen

    def _ahead(self) -> dict[Job, tuple[float, float]]:
        """By deadline: what the tenant needs until that job is done, (tokens, variance), jobs before it included."""
        sums: dict[str, tuple[float, float]] = {}
        ahead: dict[Job, tuple[float, float]] = {}
        for job in sorted(self, key=lambda each: (each.deadline_s, each.tenant, each.name)):
            tokens, variance = sums.get(job.tenant, (0.0, 0.0))
            need = self._need(job)
            ahead[job] = sums[job.tenant] = (tokens + need[0], variance + need[1])
        return ahead

    def _shares(self, weights: Callable[[str], float]) -> dict[str, TenantShare]:
        """What each tenant asks for. Items without the name of a job are taken for a stream that never ends."""
        shares: dict[str, TenantShare] = {}
        for job in self:
            tokens, variance = self._need(job) if job.name else (inf, 0.0)
            share = shares.get(job.tenant, TenantShare(weights(job.tenant), 0.0, 0.0))
            shares[job.tenant] = TenantShare(share.weight, share.tokens + tokens, share.variance + variance)
        return shares

    def _lasting(self, weights: Callable[[str], float], now_s: float) -> dict[str, TenantShare]:
        """As if nobody's work ended, and who has none now had it as often as in the last days: a tenant that is done
        may bring the next job, of which nothing is known."""
        here = {job.tenant: 1.0 for job in self}
        step = 1 - exp(-(now_s - self._shared_s) / (self.rate.week_s / 7))
        self._shared_s = now_s
        for tenant in self._presence | here:
            known = self._presence.get(tenant, 0.0)
            self._presence[tenant] = known + step * (here.get(tenant, 0.0) - known)
        often = sorted(self._presence.items(), key=lambda each: each[1], reverse=True)[:JOBS_MAX]
        self._presence = {tenant: share for tenant, share in often if share > PRESENCE_MIN}
        lasting = {tenant: TenantShare(weights(tenant) * share, inf, 0.0) for tenant, share in self._presence.items()}
        return lasting | {tenant: TenantShare(weights(tenant), inf, 0.0) for tenant in here}

    def _need(self, job: Job) -> tuple[float, float]:
        """Tokens that `job` still needs, and the variance of that; what those in flight wrote is not subtracted."""
        own, others = job.lengths, self._lengths
        share = own.count / (own.count + LENGTHS_PRIOR)
        mean = share * own.mean + (1 - share) * others.mean
        return job.items * mean, job.items * (share * own.variance + (1 - share) * others.variance)

    def _last(self, deviations: float) -> float:
        """How much longer the last requests of a job take than the tokens in all."""
        return self._stays.mean + deviations * sqrt(self._stays.variance)

    def _verdict(self, job: Job, tokens: float, now_s: float) -> JobVerdict:
        left_s = job.deadline_s - now_s
        if left_s == inf:
            return JobVerdict.NO_DEADLINE
        if left_s <= 0:
            return JobVerdict.INFEASIBLE
        if not tokens or not self.rate.samples:
            return JobVerdict.UNKNOWN
        if tokens > self.rate.best * self._boost * left_s:
            return JobVerdict.INFEASIBLE
        return JobVerdict.ON_TIME if job.eta.p90_s <= left_s else JobVerdict.AT_RISK

    def _urgency(self, job: Job, now_s: float) -> float:
        """1 - laxity / horizon, inside 0 … 1. The horizon is fixed: a share of the time left would never be urgent."""
        if not self._horizon_s or job.deadline_s == inf or job.verdict is JobVerdict.UNKNOWN:
            return 0.0
        laxity_s = job.deadline_s - now_s - job.eta.p50_s
        return min(1.0, max(0.0, 1 - laxity_s / self._horizon_s))
