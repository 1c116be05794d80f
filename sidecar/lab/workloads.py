"""What arrives in a simulation: online requests over time, and an endless offline backlog. All drawn from one seed.

Lengths and rates come from the measured origin (see each constant). Nobody outside the engine knows an output length
before it ends: `Job.output_tokens` is read by the simulated engine alone.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import cos, log, pi
from pathlib import Path

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng

from sidecar.core.errors import SidecarError
from sidecar.core.work import Lane, Work

Z99 = 2.3263478740408408  # the 99th percentile of the standard normal distribution
BLOCK = 4096  # offline items drawn at once: numpy is slow for single draws


class WorkloadError(SidecarError):
    """The caller has to name another workload or mend the file of arrivals; the message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of work with the length that only the engine knows."""

    work: Work
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
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

    online_prompt: Lengths
    online_output: Lengths
    offline_prompt: Lengths
    offline_output: Lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of time in which online requests arrive as a Poisson process of one rate."""

    begin_s: float
    end_s: float
    rate_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Who sends what, how often. `segments(rng, hours)` draws the rate over time; lengths are per lane."""

    name: str
    segments: Callable[[Generator, float], Iterator[Segment]]
    mix: Mix
    hours: float = 1.0  # of a run, unless the caller says otherwise
    heavy_prompt_tokens: int = 0  # one tenant sends prompts of this length ...
    heavy_every_s: float = 0.0  # ... one after each such pause on average (0 = nobody does)

    def __reduce__(self) -> tuple[Callable[[str], Workload], tuple[str]]:
        return by_name, (self.name,)  # between processes it travels by its name: `segments` cannot be pickled

    def online(self, seed: int, hours: float) -> list[Job]:
        """Every online request of one run, by time of arrival: the same list for the same seed and hours."""
        rng = default_rng(SeedSequence([seed, 1]))
        times = np.concatenate([_poisson(rng, each) for each in self.segments(rng, hours)] or [np.empty(0)])
        prompts = self.mix.online_prompt.draw(rng, len(times))
        outputs = self.mix.online_output.draw(rng, len(times))
        jobs = [
            self._online(f"o{n}", float(at), prompt, output, "default")
            for n, (at, prompt, output) in enumerate(zip(times, prompts, outputs, strict=True))
        ]
        return sorted([*jobs, *self._heavy(seed, hours)], key=lambda job: job.work.arrived_s)

    def _heavy(self, seed: int, hours: float) -> list[Job]:
        if not self.heavy_every_s:
            return []
        rng = default_rng(SeedSequence([seed, 3]))
        times = _poisson(rng, Segment(begin_s=0, end_s=hours * 3600, rate_per_s=1 / self.heavy_every_s))
        outputs = self.mix.offline_output.draw(rng, len(times))  # a reasoning request writes about as much as an item
        prompt = self.heavy_prompt_tokens
        return [
            self._online(f"h{n}", float(at), prompt, output, "reasoning")
            for n, (at, output) in enumerate(zip(times, outputs, strict=True))
        ]

    def _online(self, name: str, at_s: float, prompt: int, output: int, tenant: str) -> Job:
        at_most = self.mix.offline_output.at_most if tenant == "reasoning" else self.mix.online_output.at_most
        work = Work(
            id=name,
            lane=Lane.ONLINE,
            model="tensorrt_llm",
            arrived_s=at_s,
            prompt_tokens=prompt,
            output_tokens_max=at_most,
            tenant=tenant,
        )
        return Job(work=work, output_tokens=output)

    def offline(self, seed: int) -> Iterator[tuple[int, int]]:
        """The endless backlog: (prompt tokens, output tokens) of each item, the same order for the same seed."""
        rng = default_rng(SeedSequence([seed, 2]))
        while True:
            prompts = self.mix.offline_prompt.draw(rng, BLOCK)
            outputs = self.mix.offline_output.draw(rng, BLOCK)
            yield from zip(prompts, outputs, strict=True)


def offline_job(
    number: int, prompt_tokens: int, output_tokens: int, *, arrived_s: float, output_max: int, resumable: bool
) -> Job:
    """The `number`th item of the backlog, as it enters the scheduler at `arrived_s`."""
    work = Work(
        id=f"b{number}",
        lane=Lane.OFFLINE,
        model="tensorrt_llm",
        arrived_s=arrived_s,
        prompt_tokens=prompt_tokens,
        output_tokens_max=output_max,
        resumable=resumable,
    )
    return Job(work=work, output_tokens=output_tokens)


def _poisson(rng: Generator, segment: Segment) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    length_s = segment.end_s - segment.begin_s
    count = rng.poisson(segment.rate_per_s * length_s)
    return np.sort(rng.uniform(segment.begin_s, segment.end_s, count))


def constant(rate_per_s: float) -> Callable[[Generator, float], Iterator[Segment]]:
    """One rate throughout."""

    def segments(_: Generator, hours: float) -> Iterator[Segment]:
        yield Segment(begin_s=0.0, end_s=hours * 3600, rate_per_s=rate_per_s)

    return segments


def alternating(high_per_s: float, low_per_s: float, each_s: float) -> Callable[[Generator, float], Iterator[Segment]]:
    """Bursts and pauses of equal, fixed length, beginning with a pause so that every onset is seen."""

    def segments(_: Generator, hours: float) -> Iterator[Segment]:
        begin, high = 0.0, False
        while begin < hours * 3600:
            end = min(begin + each_s, hours * 3600)
            yield Segment(begin_s=begin, end_s=end, rate_per_s=high_per_s if high else low_per_s)
            begin, high = end, not high

    return segments


def bursty(
    mean_per_s: Callable[[float], float], peak: float = 3.0, high_s: float = 60.0, low_s: float = 240.0
) -> Callable[[Generator, float], Iterator[Segment]]:
    """A two-state Markov-modulated Poisson process around `mean_per_s(time)`: bursts at `peak` times the mean.

    The low rate keeps the mean: with the default fifth of the time in bursts of 3x it is half the mean.
    """
    share = high_s / (high_s + low_s)
    low = (1 - share * peak) / (1 - share)

    def segments(rng: Generator, hours: float) -> Iterator[Segment]:
        begin, high = 0.0, bool(rng.random() < share)
        while begin < hours * 3600:
            end = min(begin + float(rng.exponential(high_s if high else low_s)), hours * 3600)
            yield Segment(begin_s=begin, end_s=end, rate_per_s=mean_per_s(begin) * (peak if high else low))
            begin, high = end, not high

    return segments


def _day_and_night(time_s: float) -> float:
    """Requests per second of the diurnal week: nights at a tenth of the working-day peak, weekends at half."""
    day, hour = divmod(time_s / 3600, 24)
    shape = 0.55 - 0.45 * cos(2 * pi * (hour - 3) / 24)  # least at 3 h (0.1), most at 15 h (1.0)
    return DIURNAL_PEAK_PER_S * shape * (0.5 if day % 7 >= 5 else 1.0)


# Measured origin: 2,400 requests/h on 8 GPUs, that is half of it per engine of four; objective p99 < 800 ms.
ORIGIN_MEAN_PER_S = 1200 / 3600
DIURNAL_PEAK_PER_S = 2 * ORIGIN_MEAN_PER_S
# Measured with `--workload constant-R` (online-only, 70b-tp4-a100, 64 slots): at 6/s the p95 TTFT is twice the 172 ms
# of low load. Bursts run at 88 % of it, pauses at half of that.
KNEE_PER_S = 6.0
# Eight slots serve 13.5/s of online work alone (measured likewise).
OVERLOAD_PER_S = 16.0

# Toy model behind the measured origin: online prompt p50 300 / p99 1,200, output 4 / 30; offline prompt 400 / 1,500,
# output 120 / 890 (the origin's own percentiles). Context 4K: prompts are cut at 3,072, items declare max_tokens 1,024.
TOY = Mix(
    online_prompt=Lengths(p50=300, p99=1200, at_most=3072),
    online_output=Lengths(p50=4, p99=30, at_most=128),
    offline_prompt=Lengths(p50=400, p99=1500, at_most=3072),
    offline_output=Lengths(p50=120, p99=890, at_most=1024),
)

WORKLOADS = {
    each.name: each
    for each in (
        Workload(name="origin", segments=bursty(lambda _: ORIGIN_MEAN_PER_S), mix=TOY),
        Workload(name="knee", segments=alternating(0.88 * KNEE_PER_S, 0.44 * KNEE_PER_S, 90.0), mix=TOY),
        Workload(name="overload", segments=constant(OVERLOAD_PER_S), hours=6.0, mix=TOY),
        Workload(name="diurnal", segments=bursty(_day_and_night), hours=168.0, mix=TOY),
        # A 28,000-token reasoning prompt beside ordinary requests (reported: others' p99 triples).
        Workload(
            name="long-prompt",
            segments=constant(ORIGIN_MEAN_PER_S),
            heavy_prompt_tokens=28_000,
            heavy_every_s=120.0,
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


FIELDS = ("arrived_s", "tenant", "prompt_tokens", "output_tokens", "output_tokens_max")


def write_csv(path: Path, jobs: Iterable[Job]) -> None:
    """Online arrivals as a CSV file with one header line; `read_csv` gives the same jobs back."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for job in jobs:
            work = job.work
            row = (work.tenant, work.prompt_tokens, job.output_tokens, work.output_tokens_max)
            writer.writerow((repr(work.arrived_s), *row))


def read_csv(path: Path) -> list[Job]:
    """Recorded online arrivals, by time. Raises WorkloadError with the line that cannot be read."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise WorkloadError(f"{path}: the first line must be {','.join(FIELDS)}")
        jobs = [_recorded(path, number, row) for number, row in enumerate(reader)]
    return sorted(jobs, key=lambda job: job.work.arrived_s)


def _recorded(path: Path, number: int, row: dict[str, str]) -> Job:
    try:
        work = Work(
            id=f"o{number}",
            lane=Lane.ONLINE,
            model="tensorrt_llm",
            arrived_s=float(row["arrived_s"]),
            prompt_tokens=int(row["prompt_tokens"]),
            output_tokens_max=int(row["output_tokens_max"]),
            tenant=row["tenant"],
        )
        return Job(work=work, output_tokens=int(row["output_tokens"]))
    except (TypeError, ValueError) as error:
        raise WorkloadError(f"{path}, line {number + 2}: {error}") from error
