"""How far each job is: what the compacted progress topic says, per tenant, job and partition.

A partition's counts are written in the transaction that writes its results, to the progress partition of the same
number, and its next owner reads them back: they are exact whoever dies. Readers sum over partitions. A change of the
outlook (a job at risk, above all) is told at the next tick even if nothing ended in it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sidecar.core.deadlines import JobVerdict
from sidecar.core.snapshot import JobSnapshot
from sidecar.offline.dead_letters import DeadItemError
from sidecar.offline.item import TENANT_DEFAULT, Record
from sidecar.offline.receipts import DIGEST_BYTES, MODULUS

log = logging.getLogger(__name__)

JobKey = tuple[str, str]  # tenant, job
_NOT_IN_TIME = (JobVerdict.AT_RISK, JobVerdict.INFEASIBLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTally:
    """What of one job is committed on one partition, since the topic began, and what was last said about its end."""

    done: int = 0
    dead: int = 0  # expired and cancelled ones included
    at_risk: bool = False
    # What follows from the same ends: two tallies with the same counts are the same.
    cancelled: int = field(default=0, compare=False)
    prompt_tokens: int = field(default=0, compare=False)  # of results
    output_tokens: int = field(default=0, compare=False)
    digest: int = field(default=0, compare=False)  # the sum over all outcomes: see receipts.py

    def with_end(self, end: ItemEnd) -> JobTally:
        """The tally with one more item that has ended."""
        return replace(
            self,
            done=self.done + end.well,
            dead=self.dead + (not end.well),
            cancelled=self.cancelled + end.cancelled,
            prompt_tokens=self.prompt_tokens + end.prompt_tokens,
            output_tokens=self.output_tokens + end.output_tokens,
            digest=(self.digest + end.digest) % MODULUS,
        )


class ItemEnd(NamedTuple):
    """How one item ended, as far as its job's counts go."""

    record: Record
    well: bool
    cancelled: bool = False
    prompt_tokens: int = 0
    output_tokens: int = 0
    digest: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """When a job will be done as this process sees it, on all its partitions. Seconds from now; None = not known."""

    verdict: JobVerdict = JobVerdict.UNKNOWN
    at_risk: bool = False
    eta_p50_s: float | None = None
    eta_p90_s: float | None = None


def job_of(record: Record) -> JobKey | None:
    """Return whose item this is; None if its producer named no job, or if a name is none: then it is a dead letter."""
    try:
        job, tenant = record.name("x-job"), record.name("x-tenant")
    except DeadItemError:
        return None
    return (tenant or TENANT_DEFAULT, job) if job else None


def outlook(jobs: Iterable[JobSnapshot], key: JobKey, unread: int) -> Outlook:
    """The forecast for `key`, stretched by the `unread` items that the scheduler does not know of yet.

    Assumed: they are of this job, as long as those that are here, and run at the same rate. On several models the last
    one to end counts.
    """
    stretched = [_stretched(each, unread) for each in jobs if (each.tenant, each.job) == key]
    return max(stretched, key=lambda each: (each.at_risk, each.eta_p90_s or 0.0), default=Outlook())


def _stretched(job: JobSnapshot, unread: int) -> Outlook:
    factor = 1 + unread / max(job.items, 1)
    p50_s, p90_s = (None if each is None else each * factor for each in (job.eta_p50_s, job.eta_p90_s))
    verdict = job.verdict
    if verdict is JobVerdict.ON_TIME and job.deadline_in_s is not None and (p90_s is None or p90_s > job.deadline_in_s):
        verdict = JobVerdict.AT_RISK
    return Outlook(verdict=verdict, at_risk=verdict in _NOT_IN_TIME, eta_p50_s=p50_s, eta_p90_s=p90_s)


def counted(
    tallies: Mapping[JobKey, JobTally], ended: Iterable[ItemEnd], outlooks: Mapping[JobKey, Outlook]
) -> dict[JobKey, JobTally]:
    """The tallies that are other ones once these items have ended, and the outlooks are told.

    The cost follows from what ended: a topic may hold the tallies of any number of jobs.
    """
    new: dict[JobKey, JobTally] = {}
    for end in ended:
        if (key := job_of(end.record)) is not None:
            new[key] = (new.get(key) or tallies.get(key) or JobTally()).with_end(end)
    for key, each in outlooks.items():
        new[key] = replace(new.get(key) or tallies.get(key) or JobTally(), at_risk=each.at_risk)
    return {key: tally for key, tally in new.items() if tally != tallies.get(key, JobTally())}


def encoded(key: JobKey, partition: int, tally: JobTally, waiting: int, outlook: Outlook) -> tuple[bytes, bytes]:
    """Key and value of a record of the progress topic (kafka/progress.schema.json)."""
    value = {
        "tenant": key[0],
        "job": key[1],
        "partition": partition,
        "done": tally.done,
        "dead": tally.dead,
        "cancelled": tally.cancelled,
        "prompt_tokens": tally.prompt_tokens,
        "output_tokens": tally.output_tokens,
        "digest": f"{tally.digest:0{2 * DIGEST_BYTES}x}",
        "waiting": waiting,
        "eta_p50_s": outlook.eta_p50_s,
        "eta_p90_s": outlook.eta_p90_s,
        "at_risk": outlook.at_risk,
        "verdict": outlook.verdict.value,
    }
    return json.dumps([*key, partition], separators=(",", ":")).encode(), json.dumps(value).encode()


def decoded(records: Iterable[tuple[bytes | None, bytes | None]]) -> dict[JobKey, JobTally]:
    """The tallies of one partition, from its records of the progress topic in order: the last of each key counts.

    What somebody else wrote there is left out: it must not keep the partition from being opened.
    """
    found: dict[JobKey, JobTally] = {}
    foreign = 0
    for key, value in records:
        job, tally = _job(key), None if value is None else _tally(value)
        if job is None or (tally is None and value is not None):
            foreign += 1
        elif tally is None:  # whoever deletes a job begins it anew
            found.pop(job, None)
        else:
            found[job] = tally
    if foreign:
        log.warning("the progress topic holds %d records that are no job's counts; they are left out", foreign)
    return found


def _job(key: bytes | None) -> JobKey | None:
    match _json(key):
        case [str(tenant), str(job), int()]:
            return tenant, job
        case _:
            return None


def _tally(value: bytes) -> JobTally | None:
    match _json(value):
        case {"done": int(done), "dead": int(dead), "at_risk": bool(at_risk)} if min(done, dead) >= 0:
            return JobTally(done=done, dead=dead, at_risk=at_risk, **_further(_json(value)))
        case _:
            return None


def _further(told: Mapping[str, Any]) -> dict[str, int]:
    """What an older version did not tell counts as 0."""
    found = {name: told.get(name) for name in ("cancelled", "prompt_tokens", "output_tokens")}
    counts = {name: count for name, count in found.items() if isinstance(count, int) and count >= 0}
    with contextlib.suppress(ValueError, TypeError):
        counts["digest"] = int(told.get("digest", "0"), 16) % MODULUS
    return counts


def _json(text: bytes | None) -> Any:
    """None for what is no JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        return None if text is None else json.loads(text)
    return None
