"""What arrives in a simulation: online requests over time, an endless offline backlog, jobs. All drawn from one seed.

Lengths and rates come from the measured origin (see each constant). Nobody outside the engine knows an output length
before it ends: `Job.output_tokens` is read by the simulated engine alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng

from sidecar.core.errors import SettingsError
from sidecar.core.request import Lane, Request
from sidecar.core.settings import SchedulerSettings, TenantSettings
from sidecar.sim.lengths import CODE, CONVERSATION, ENRICH, EVICTION, LABELS, TOY, Mix
from sidecar.sim.rates import (
    KNEE_PER_S,
    ORIGIN_MEAN_PER_S,
    OVERLOAD_PER_S,
    WEEK_H,
    RateSegment,
    Rounds,
    Times,
    alternating,
    bursty,
    constant,
    poisson,
    renewals,
    step,
    week,
)
from sidecar.sim.traits import AS_THE_PROFILE, EngineTraits

PROMPT_BLOCK = 512  # tokens of one of a request's `prompt_blocks`, as Mooncake's trace has them
BLOCK = 4096  # offline items drawn at once: numpy is slow for single draws


class WorkloadError(SettingsError):
    """The caller has to name another workload or mend the file of arrivals; the message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRequest:
    """One request with the length that only the engine knows."""

    request: Request
    output_tokens: int
    prefix_tokens: int = 0  # of the prompt, equal to those of every other with its prefix_key
    prompt_blocks: tuple[int, ...] = ()  # what the prefix is made of, PROMPT_BLOCK tokens each; () = of its key alone


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
    profile: str = "70b-tp4-a100"  # likewise
    slots: int = 8  # likewise
    engine: EngineTraits = AS_THE_PROFILE
    gaps_cv: float = 1.0  # coefficient of variation of the gaps between arrivals; 1 = a Poisson process
    tenants: int = 0  # so many send, the nth of them 1/n as much as the first; 0 = one, `default`
    heavy_prompt_tokens: int = 0  # one tenant sends prompts of this length ...
    heavy_every_s: float = 0.0  # ... one after each such pause on average (0 = nobody does)
    heavy_tenant: str = ""  # its name
    prefixes: int = (
        0  # so many different system prompts stand before PREFIXED of the items, some more often than others
    )
    prefix_tokens: int = 0  # each of so many tokens, before every item, each as often; 0 = of the lengths of prompts
    rounds: Rounds | None = None  # arrivals at once, instead of a process
    jobs: tuple[WorkloadJob, ...] = ()  # beside the backlog, the same for each seed and however many hours
    endless: bool = True  # False: there is no backlog, only jobs
    weekly: bool = False  # days and nights; jobs with deadlines beside the backlog

    def __reduce__(self) -> tuple[Callable[[str], Workload], tuple[str]]:
        return by_name, (self.name,)  # between processes it travels by its name: `segments` cannot be pickled

    def time_scale(self, hours: float) -> float:
        """Return how many times faster than the clock the time of day runs in a run of so many hours."""
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
        """The jobs. Those of a week: a daily one of one tenant, a weekly one of another, to be done well before."""
        if not self.weekly:
            return list(self.jobs)
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

    def items(self, seed: int, hours: float, *, resumable: bool = True) -> list[SimulatedRequest]:
        """Every item of the jobs, by time of arrival."""
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
                    resumable=resumable,
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
        times = self.rounds.times(hours) if self.rounds else self._times(rng, hours)
        prompts = self.mix.online_prompt.draw(rng, len(times))
        outputs = self.mix.online_output.draw(rng, len(times))
        senders = self._senders(seed, 7)
        jobs = [
            self._online(f"o{n}", float(at), prompt, output, next(senders))
            for n, (at, prompt, output) in enumerate(zip(times, prompts, outputs, strict=True))
        ]
        return sorted([*jobs, *self._heavy(seed, hours)], key=lambda job: job.request.arrived_s)

    def _times(self, rng: Generator, hours: float) -> Times:
        def drawn(segment: RateSegment) -> Times:
            return poisson(rng, segment) if self.gaps_cv == 1 else renewals(rng, segment, self.gaps_cv)

        return np.concatenate([drawn(each) for each in self.segments(rng, hours)] or [np.empty(0)])

    def _senders(self, seed: int, stream: int) -> Iterator[str]:
        """Who sends the next request, and the next, for ever."""
        if not self.tenants:
            yield from repeat("default")
        rng, shares = default_rng(SeedSequence([seed, stream])), 1 / np.arange(1, self.tenants + 1)
        while True:
            yield from (f"t{rank}" for rank in rng.choice(self.tenants, BLOCK, p=shares / shares.sum()))

    def _heavy(self, seed: int, hours: float) -> list[SimulatedRequest]:
        if not self.heavy_every_s:
            return []
        rng = default_rng(SeedSequence([seed, 3]))
        times = poisson(rng, RateSegment(begin_s=0, end_s=hours * 3600, rate_per_s=1 / self.heavy_every_s))
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
        drawn = (
            [self.prefix_tokens] * self.prefixes
            if self.prefix_tokens
            else self.mix.offline_prompt.draw(rng, self.prefixes)
        )
        lengths, senders = dict(zip(kinds, drawn, strict=True)), self._senders(seed, 8)
        for number, (prompt, output) in enumerate(self.offline(seed)):
            job = offline_job(
                number,
                prompt,
                output,
                arrived_s=0.0,
                output_max=self.mix.offline_output.at_most,
                resumable=resumable,
            )
            if self.tenants:
                job = replace(job, request=replace(job.request, tenant=next(senders)))
            if kinds and (self.prefix_tokens or rng.random() < PREFIXED):
                key = kinds[int(rng.integers(len(kinds))) if self.prefix_tokens else _by_rank(rng, len(kinds))]
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


def _by_rank(rng: Generator, count: int) -> int:
    """Return one of 0 … count - 1, the small ones more often."""
    return min(int(rng.pareto(1.0)), count - 1)


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


# 64 slots alone (1,066 tokens/s, 174 per item) serve so many items; the shares of it that jobs ask for until their
# deadlines leave slack: three tenants share what online leaves, some three quarters.
ITEMS_PER_S = 6.0
PREFIXED = 0.4  # of the items of `shared-prefix`
DAILY_SHARE, WEEKLY_SHARE = 0.15, 0.2

KNEE = alternating(0.88 * KNEE_PER_S, 0.44 * KNEE_PER_S, 90.0)


def _wide(*workloads: Workload) -> Iterator[Workload]:
    """Yield them with the slots that engines of today have, unless they name their own."""
    return (replace(each, slots=64) for each in workloads)


WORKLOADS = {
    each.name: each
    for each in (
        Workload(name="origin", segments=bursty(lambda _: ORIGIN_MEAN_PER_S), mix=TOY),
        Workload(name="knee", segments=KNEE, mix=TOY),
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
        *_wide(
            Workload(name="conversation", segments=constant(1.5), mix=CONVERSATION),
            Workload(name="conversation-bursts", segments=bursty(lambda _: 0.33), mix=CONVERSATION),
            Workload(name="code", segments=constant(0.8), mix=CODE),
            # Minutes with nothing, then some 10/s: the gaps have a CV of 13, as in Azure's trace of requests for code.
            Workload(name="code-bursts", segments=bursty(lambda _: 0.8, 12.5, high_s=10.0, low_s=115.0), mix=CODE),
            Workload(name="labels", segments=bursty(lambda _: ORIGIN_MEAN_PER_S), mix=LABELS),
            Workload(name="enrich", segments=bursty(lambda _: ORIGIN_MEAN_PER_S), mix=ENRICH),
            Workload(name="knee-enrich", segments=KNEE, mix=ENRICH),
            Workload(name="tenants", segments=constant(1.0), tenants=1000, mix=TOY),
            Workload(name="bursty", segments=constant(1.0), gaps_cv=3.0, mix=TOY),
            Workload(name="step", segments=step(0.3, 4.0), mix=TOY),
            Workload(name="8b", segments=constant(2.0), profile="8b-a100", mix=TOY),
            # Engines that are worse than they should be.
            Workload(name="kv-tight", segments=constant(1.0), engine=EngineTraits(kv_tokens_max=24_000), mix=TOY),
            Workload(name="slow-stops", segments=KNEE, engine=EngineTraits(stop_poll_s=0.1), mix=TOY),
            Workload(name="no-reuse", segments=KNEE, engine=EngineTraits(kv_reuse=False), mix=TOY),
            Workload(name="noisy", segments=constant(1.0), engine=EngineTraits(jitter=0.2, stall_share=0.002), mix=TOY),
            # Every item begins with one of 400 prompts of 300 tokens, in random order: more than the cache holds.
            Workload(
                name="prefixes",
                segments=bursty(lambda _: ORIGIN_MEAN_PER_S),
                prefixes=400,
                prefix_tokens=300,
                engine=EngineTraits(kv_tokens_max=60_000),
                mix=TOY,
            ),
        ),
        # The load that llm-d-async-rs publishes (bench/resume-demo/eviction): jobs beside bursts as wide as the engine.
        Workload(
            name="eviction",
            segments=constant(0.0),
            rounds=Rounds(count=15, size=32, every_s=6.0),
            jobs=tuple(
                WorkloadJob(tenant=name, name=name, accepted_s=0.0, deadline_s=deadline_s, items=64)
                for name, deadline_s in (("a", 30.0), ("b", 55.0), ("c", 80.0))
            ),
            endless=False,
            hours=0.03,
            profile="1.5b-h200",
            slots=32,
            mix=EVICTION,
        ),
    )
}
WITH_RATE = (
    "conversation",
    "code",
    "8b",
    "bursty",
    "tenants",
    "kv-tight",
    "noisy",
)  # their names take a rate: `code-2`


def by_name(name: str) -> Workload:
    """Return the workload of that name. Raises WorkloadError with the known ones.

    `constant-R` is R online requests/s; so is a workload of one rate with a number behind its name: `conversation-3`.
    """
    kind, _, rate = name.rpartition("-")
    if rate.replace(".", "", 1).isdigit() and float(rate) > 0:
        if kind == "constant":
            return Workload(name=name, segments=constant(float(rate)), mix=TOY)
        if kind in WITH_RATE:
            return replace(WORKLOADS[kind], name=name, segments=constant(float(rate)))
    if name not in WORKLOADS:
        raise WorkloadError(
            f"unknown workload {name!r}; known: {', '.join(WORKLOADS)} and constant-R; a rate in requests/s may stand "
            f"behind {', '.join(WITH_RATE)}: conversation-3"
        )
    return WORKLOADS[name]
