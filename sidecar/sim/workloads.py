"""What arrives in a simulation: online requests over time, an endless offline backlog, jobs. All drawn from one seed.

Lengths and rates come from the measured origin (see each constant). Nobody outside the engine knows an output length
before it ends: `Job.output_tokens` is read by the simulated engine alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import cos, log, pi
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng

from sidecar.core.errors import SettingsError
from sidecar.core.request import Lane, Request
from sidecar.core.settings import SchedulerSettings, TenantSettings

Z99 = 2.3263478740408408  # the 99th percentile of the standard normal distribution
BLOCK = 4096  # offline items drawn at once: numpy is slow for single draws
WEEK_H = 168.0


class WorkloadError(SettingsError):
    """The caller has to name another workload or mend the file of arrivals; the message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRequest:
    """One request with the length that only the engine knows."""

    request: Request
    output_tokens: int
    prefix_tokens: int = 0  # of the prompt, equal to those of every other with its prefix_key


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLengths:
    """A lognormal distribution of token counts, given by two percentiles and cut off at `at_most`."""

    p50: int
    p99: int
    at_most: int

    def draw(self, rng: Generator, count: int) -> list[int]:
        """`count` lengths, each in 1..at_most."""
        sigma = log(self.p99 / self.p50) / Z99
        tokens = np.rint(self.p50 * np.exp(sigma * rng.standard_normal(count)))
        return [int(each) for each in np.clip(tokens, 1, self.at_most)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The lengths of both lanes."""

    online_prompt: TokenLengths
    online_output: TokenLengths
    offline_prompt: TokenLengths
    offline_output: TokenLengths


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSegment:
    """A stretch of time in which online requests arrive as a Poisson process of one rate."""

    begin_s: float
    end_s: float
    rate_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadJob:
    """Offline items that belong together: all are there from the start, and a deadline is promised for the last."""

    tenant: str
    name: str
    accepted_s: float
    deadline_s: float
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Who sends what, how often. `segments(rng, hours)` draws the rate over time; lengths are per lane.

    A `weekly` workload is a whole week, however many hours a run has: the time of day runs faster then, while requests,
    bursts and iterations stay as they are.
    """

    name: str
    segments: Callable[[Generator, float], Iterator[RateSegment]]
    mix: Mix
    hours: float = 1.0  # of a run, unless the caller says otherwise
    heavy_prompt_tokens: int = 0  # one tenant sends prompts of this length ...
    heavy_every_s: float = 0.0  # ... one after each such pause on average (0 = nobody does)
    heavy_tenant: str = ""  # its name
    prefixes: int = (
        0  # so many different system prompts stand before PREFIXED of the items, some more often than others
    )
    weekly: bool = False  # days and nights; jobs with deadlines beside the backlog

    def __reduce__(self) -> tuple[Callable[[str], Workload], tuple[str]]:
        return by_name, (self.name,)  # between processes it travels by its name: `segments` cannot be pickled

    def time_scale(self, hours: float) -> float:
        """How many times faster than the clock the time of day runs in a run of so many hours."""
        return WEEK_H / hours if self.weekly else 1.0

    def settings(self, hours: float) -> dict[str, Any]:
        """What a scheduler must be told to serve it: how long its week is, and room for whole jobs in the queue."""
        if not self.weekly:
            return {}
        scale = self.time_scale(hours)
        return {
            "week_s": WEEK_H * 3600 / scale,
            "urgency_horizon_s": SchedulerSettings().urgency_horizon_s / scale,
            "offline_queue_max": 1_000_000,
            "offline_queue_low": 500_000,
            "tenants": {"default": TenantSettings(waiting_max=256)},  # or the endless backlog would fill that room
        }

    def batches(self, hours: float) -> list[WorkloadJob]:
        """The jobs of the week: a daily one of one tenant, a weekly one of another. Sized to be done well before."""
        if not self.weekly:
            return []
        day_s = 86_400 / self.time_scale(hours)

        def batch(tenant: str, name: str, begin: float, days: float, share: float) -> WorkloadJob:
            return WorkloadJob(
                tenant=tenant,
                name=name,
                accepted_s=begin * day_s,
                deadline_s=(begin + days) * day_s,
                items=round(share * days * day_s * ITEMS_PER_S),
            )

        daily = [batch("enrichment", f"day-{day}", day + 0.25, 1.0, DAILY_SHARE) for day in range(6)]
        return [*daily, batch("evaluation", "week", 0.25, 6.25, WEEKLY_SHARE)]

    def items(self, seed: int, hours: float) -> list[SimulatedRequest]:
        """Every item of the jobs of the week, by time of arrival."""
        rng = default_rng(SeedSequence([seed, 5]))
        found: list[SimulatedRequest] = []
        for batch in self.batches(hours):
            lengths = zip(
                self.mix.offline_prompt.draw(rng, batch.items),
                self.mix.offline_output.draw(rng, batch.items),
                strict=True,
            )
            for number, (prompt, output) in enumerate(lengths):
                job = offline_job(
                    number,
                    prompt,
                    output,
                    arrived_s=batch.accepted_s,
                    output_max=self.mix.offline_output.at_most,
                    resumable=True,
                )
                request = replace(
                    job.request,
                    id=f"{batch.name}-{number}",
                    tenant=batch.tenant,
                    job=batch.name,
                    deadline_s=batch.deadline_s,
                )
                found.append(replace(job, request=request))
        return sorted(found, key=lambda each: each.request.arrived_s)

    def online(self, seed: int, hours: float) -> list[SimulatedRequest]:
        """Every online request of one run, by time of arrival: the same list for the same seed and hours."""
        rng = default_rng(SeedSequence([seed, 1]))
        times = np.concatenate([_poisson(rng, each) for each in self.segments(rng, hours)] or [np.empty(0)])
        prompts = self.mix.online_prompt.draw(rng, len(times))
        outputs = self.mix.online_output.draw(rng, len(times))
        jobs = [
            self._online(f"o{n}", float(at), prompt, output, "default")
            for n, (at, prompt, output) in enumerate(zip(times, prompts, outputs, strict=True))
        ]
        return sorted([*jobs, *self._heavy(seed, hours)], key=lambda job: job.request.arrived_s)

    def _heavy(self, seed: int, hours: float) -> list[SimulatedRequest]:
        if not self.heavy_every_s:
            return []
        rng = default_rng(SeedSequence([seed, 3]))
        times = _poisson(rng, RateSegment(begin_s=0, end_s=hours * 3600, rate_per_s=1 / self.heavy_every_s))
        outputs = self.mix.offline_output.draw(rng, len(times))  # a reasoning request writes about as much as an item
        prompt = self.heavy_prompt_tokens
        return [
            self._online(f"h{n}", float(at), prompt, output, self.heavy_tenant)
            for n, (at, output) in enumerate(zip(times, outputs, strict=True))
        ]

    def _online(self, name: str, at_s: float, prompt: int, output: int, tenant: str) -> SimulatedRequest:
        heavy = tenant == self.heavy_tenant
        at_most = self.mix.offline_output.at_most if heavy else self.mix.online_output.at_most
        request = Request(
            id=name,
            lane=Lane.ONLINE,
            model="tensorrt_llm",
            arrived_s=at_s,
            prompt_tokens=prompt,
            output_tokens_max=at_most,
            tenant=tenant,
        )
        return SimulatedRequest(request=request, output_tokens=output)

    def backlog(self, seed: int, *, resumable: bool = True) -> Iterator[SimulatedRequest]:
        """The endless backlog, the same for the same seed; `arrived_s` is for whoever lets an item in."""
        rng = default_rng(SeedSequence([seed, 6]))
        kinds = [f"p{seed}-{number}" for number in range(self.prefixes)]
        lengths = dict(zip(kinds, self.mix.offline_prompt.draw(rng, self.prefixes), strict=True))
        for number, (prompt, output) in enumerate(self.offline(seed)):
            job = offline_job(
                number,
                prompt,
                output,
                arrived_s=0.0,
                output_max=self.mix.offline_output.at_most,
                resumable=resumable,
            )
            if kinds and rng.random() < PREFIXED:
                key = kinds[min(int(rng.pareto(1.0)), len(kinds) - 1)]
                prompt = min(prompt + lengths[key], self.mix.offline_prompt.at_most)
                request = replace(job.request, prompt_tokens=prompt, prefix_key=key)
                job = replace(job, request=request, prefix_tokens=min(lengths[key], prompt - 1))
            yield job

    def offline(self, seed: int) -> Iterator[tuple[int, int]]:
        """The endless backlog: (prompt tokens, output tokens) of each item, the same order for the same seed."""
        rng = default_rng(SeedSequence([seed, 2]))
        while True:
            prompts = self.mix.offline_prompt.draw(rng, BLOCK)
            outputs = self.mix.offline_output.draw(rng, BLOCK)
            yield from zip(prompts, outputs, strict=True)


def offline_job(
    number: int, prompt_tokens: int, output_tokens: int, *, arrived_s: float, output_max: int, resumable: bool
) -> SimulatedRequest:
    """The `number`th item of the backlog, as it enters the scheduler at `arrived_s`."""
    request = Request(
        id=f"b{number}",
        lane=Lane.OFFLINE,
        model="tensorrt_llm",
        arrived_s=arrived_s,
        prompt_tokens=prompt_tokens,
        output_tokens_max=output_max,
        resumable=resumable,
    )
    return SimulatedRequest(request=request, output_tokens=output_tokens)


def _poisson(rng: Generator, segment: RateSegment) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    length_s = segment.end_s - segment.begin_s
    count = rng.poisson(segment.rate_per_s * length_s)
    return np.sort(rng.uniform(segment.begin_s, segment.end_s, count))


def constant(rate_per_s: float) -> Callable[[Generator, float], Iterator[RateSegment]]:
    """One rate throughout."""

    def segments(_: Generator, hours: float) -> Iterator[RateSegment]:
        yield RateSegment(begin_s=0.0, end_s=hours * 3600, rate_per_s=rate_per_s)

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
    low = (1 - share * peak) / (1 - share)

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


# Measured origin: 2,400 requests/h on 8 GPUs, that is half of it per engine of four; objective p99 < 800 ms.
ORIGIN_MEAN_PER_S = 1200 / 3600
DIURNAL_PEAK_PER_S = 2 * ORIGIN_MEAN_PER_S
# Measured with `--workload constant-R` (online-only, 70b-tp4-a100, 64 slots): at 6/s the p95 TTFT is twice the 172 ms
# of low load. Bursts run at 88 % of it, pauses at half of that.
KNEE_PER_S = 6.0
# Eight slots serve 13.5/s of online work alone (measured likewise).
OVERLOAD_PER_S = 16.0

# 64 slots alone (1,066 tokens/s, 174 per item) serve so many items; the shares of it that jobs ask for until their
# deadlines leave slack: three tenants share what online leaves, some three quarters.
ITEMS_PER_S = 6.0
PREFIXED = 0.4  # of the items of `shared-prefix`
DAILY_SHARE, WEEKLY_SHARE = 0.15, 0.2

# Toy model behind the measured origin: online prompt p50 300 / p99 1,200, output 4 / 30; offline prompt 400 / 1,500,
# output 120 / 890 (the origin's own percentiles). Context 4K: prompts are cut at 3,072, items declare max_tokens 1,024.
TOY = Mix(
    online_prompt=TokenLengths(p50=300, p99=1200, at_most=3072),
    online_output=TokenLengths(p50=4, p99=30, at_most=128),
    offline_prompt=TokenLengths(p50=400, p99=1500, at_most=3072),
    offline_output=TokenLengths(p50=120, p99=890, at_most=1024),
)

WORKLOADS = {
    each.name: each
    for each in (
        Workload(name="origin", segments=bursty(lambda _: ORIGIN_MEAN_PER_S), mix=TOY),
        Workload(name="knee", segments=alternating(0.88 * KNEE_PER_S, 0.44 * KNEE_PER_S, 90.0), mix=TOY),
        Workload(name="overload", segments=constant(OVERLOAD_PER_S), hours=6.0, mix=TOY),
        Workload(name="diurnal", segments=week, hours=WEEK_H, mix=TOY, weekly=True),
        # Two in five items begin with one of 200 system prompts, whose popularity falls off with their rank.
        Workload(name="shared-prefix", segments=bursty(lambda _: ORIGIN_MEAN_PER_S), prefixes=200, mix=TOY),
        # A 28,000-token reasoning prompt beside ordinary requests (reported: others' p99 triples).
        Workload(
            name="long-prompt",
            segments=constant(ORIGIN_MEAN_PER_S),
            heavy_prompt_tokens=28_000,
            heavy_every_s=120.0,
            heavy_tenant="reasoning",
            mix=TOY,
        ),
    )
}


def by_name(name: str) -> Workload:
    """The workload of that name; `constant-R` is R online requests/s. Raises WorkloadError with the known ones."""
    kind, _, rate = name.rpartition("-")
    if kind == "constant" and rate.replace(".", "", 1).isdigit():
        return Workload(name=name, segments=constant(float(rate)), mix=TOY)
    if name not in WORKLOADS:
        raise WorkloadError(f"unknown workload {name!r}; known: {', '.join(WORKLOADS)} and constant-R (requests/s)")
    return WORKLOADS[name]
