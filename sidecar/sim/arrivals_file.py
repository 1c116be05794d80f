"""Recorded online arrivals: a CSV file, read whole and checked before anything is simulated with it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil, isfinite
from pathlib import Path

from numpy.random import SeedSequence, default_rng

from sidecar.core.request import Lane, Request
from sidecar.sim.workloads import SimulatedRequest, WorkloadError

FIELDS = ("arrived_s", "tenant", "prompt_tokens", "output_tokens", "output_tokens_max")
FAULTS_TOLD = 10  # of a file; who made one mistake in each line needs no more to see it
TENANT_MAX = 256  # characters of a name
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Online requests by time of arrival, in seconds from the beginning of the run."""

    path: Path
    jobs: tuple[SimulatedRequest, ...]
    moved_s: float = 0.0  # by which the times of the file were moved to begin at 0
    left_out: int = 0  # requests of a public trace that had no answer, or that the engine cannot hold

    @property
    def name(self) -> str:
        """Return what the figures are filed under."""
        return self.path.stem

    @property
    def hours(self) -> float:
        """The span of the file, in whole minutes."""
        return max(1, ceil(self.jobs[-1].request.arrived_s / MINUTE_S)) * MINUTE_S / 3600

    @property
    def rate_per_s(self) -> float:
        """Requests per second over the span of the file."""
        return len(self.jobs) / (self.hours * 3600)

    def within(self, hours: float) -> int:
        """Return how many of them come in so many hours."""
        return sum(job.request.arrived_s <= hours * 3600 for job in self.jobs)

    def thinned(self, rate_per_s: float, hours: float, seed: int) -> tuple[SimulatedRequest, ...]:
        """Return what is left of a stretch of so many hours if each request stays with the same probability.

        The rate over the whole file is then `rate_per_s`. The seed draws where the stretch begins and who stays.
        """
        rng, seconds = default_rng(SeedSequence([seed, 10])), hours * 3600
        begin_s = rng.uniform(0.0, max(0.0, self.jobs[-1].request.arrived_s - seconds))
        stay = rng.random(len(self.jobs)) < rate_per_s / self.rate_per_s
        moments = [job.request.arrived_s - begin_s for job in self.jobs]
        return tuple(
            replace(job, request=replace(job.request, arrived_s=at_s))
            for job, at_s, stays in zip(self.jobs, moments, stay, strict=True)
            if stays and 0 <= at_s < seconds
        )


def write_csv(path: Path, jobs: Iterable[SimulatedRequest]) -> None:
    """Online arrivals as a CSV file with one header line; `read_csv` gives the same jobs back."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for job in jobs:
            request = job.request
            row = (request.tenant, request.prompt_tokens, job.output_tokens, request.output_tokens_max)
            writer.writerow((repr(request.arrived_s), *row))


def read_csv(path: Path, sequence_max: int) -> Arrivals:
    """The arrivals of `path`. Raises WorkloadError, one line for each row that no engine could serve.

    No prompt with its output may be longer than `sequence_max` tokens. Times of another clock (the first one is further
    from 0 than from the last one) are moved to begin at 0.
    """
    jobs: list[SimulatedRequest] = []
    faults: list[str] = []
    for number, row in _rows(path):
        try:
            jobs.append(_job(f"o{len(jobs) + len(faults)}", row, sequence_max))
        except ValueError as error:
            faults.append(f"{path}:{number}: {error}")
    if faults:
        more = len(faults) - FAULTS_TOLD
        raise WorkloadError(
            "\n".join([*faults[:FAULTS_TOLD], *([f"{path}: {more} more bad rows"] if more > 0 else [])])
        )
    if not jobs:
        raise WorkloadError(f"{path} holds no arrivals")
    jobs.sort(key=lambda job: job.request.arrived_s)
    first_s, last_s = jobs[0].request.arrived_s, jobs[-1].request.arrived_s
    if first_s <= last_s - first_s:
        return Arrivals(path=path, jobs=tuple(jobs))
    moved = [replace(job, request=replace(job.request, arrived_s=job.request.arrived_s - first_s)) for job in jobs]
    return Arrivals(path=path, jobs=tuple(moved), moved_s=first_s)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header, each with the number of its line. Blank lines are skipped."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            if tuple(next(reader, ())) != FIELDS:
                raise WorkloadError(f"{path}:1: the first line must be {','.join(FIELDS)}")
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, row
            except csv.Error as error:
                raise WorkloadError(f"{path}:{reader.line_num}: {error}") from None
    except csv.Error as error:
        raise WorkloadError(f"{path}:1: {error}") from None
    except UnicodeDecodeError:
        raise WorkloadError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise WorkloadError(f"cannot read {path}: {error.strerror}") from None


def _job(name: str, row: list[str], sequence_max: int) -> SimulatedRequest:
    """Raises ValueError for a row that is no arrival."""
    if len(row) != len(FIELDS):
        raise ValueError(f"{len(row)} columns, not {len(FIELDS)}")
    value = dict(zip(FIELDS, row, strict=True))
    prompt, output, output_max = (_count(value, each) for each in FIELDS[2:])
    if output > output_max:
        raise ValueError(f"output_tokens {output} is more than output_tokens_max {output_max}")
    if prompt + output_max > sequence_max:
        raise ValueError(f"{prompt} + {output_max} tokens are more than the {sequence_max} that the engine holds")
    if not 0 < len(value["tenant"]) <= TENANT_MAX:
        raise ValueError(f"a tenant's name has 1 to {TENANT_MAX} characters")
    request = Request(
        id=name,
        lane=Lane.ONLINE,
        model="tensorrt_llm",
        arrived_s=_time(value["arrived_s"]),
        prompt_tokens=prompt,
        output_tokens_max=output_max,
        tenant=value["tenant"],
    )
    return SimulatedRequest(request=request, output_tokens=output)


def _time(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not (isfinite(found) and found >= 0):
        raise ValueError(f"arrived_s must be a number of seconds >= 0, not {text[:40]!r}")
    return found


def _count(row: dict[str, str], name: str) -> int:
    text = row[name].strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise ValueError(f"{name} must be a whole number >= 1, not {row[name][:40]!r}")
    return int(text)
