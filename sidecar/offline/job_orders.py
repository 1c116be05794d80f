"""What people have ordered of jobs (cancel, pause, a deadline), and how an item obeys while it waits or runs.

Orders stand on the compacted jobs topic, one record per tenant, job and field, so that two people who change different
fields of one job do not undo each other. Every sidecar reads all of it (`job_topic.py`); a key's last record holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Any

from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item import deadline_of
from sidecar.offline.job_progress import JobKey

log = logging.getLogger(__name__)
ORDERS_MAX = 100_000  # jobs that are not plainly running; beyond it the oldest orders are forgotten


class JobField(StrEnum):
    """What a record of the jobs topic tells of its job: the last part of its key."""

    MANIFEST = "manifest"  # what was submitted: see `sidecar/batch/manifest.py`
    STATE = "state"
    DEADLINE = "deadline"  # in place of the items' own; null takes the order back
    PRIORITY = "priority"  # among its tenant's jobs of one deadline
    RETRIED = "retried"  # how many of its dead letters were sent again, in all: each has two outcomes in the counts


class JobState(StrEnum):
    """What is to become of a job's items."""

    RUNNING = "running"
    PAUSED = "paused"  # none runs; they wait in their places
    CANCELLED = "cancelled"  # each item that has not ended is a dead letter `cancelled`


class JobPriority(StrEnum):
    """Whose items go first where tenant and deadline are the same; the first member does."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


_RANKS = {priority: rank for rank, priority in enumerate(JobPriority)}


class JobPausedError(Exception):
    """The job was paused while one of its items waited for the engine, or ran."""


def encoded_key(job: JobKey, field: JobField) -> bytes:
    """The key of a record of the jobs topic."""
    return json.dumps([*job, field.value], separators=(",", ":")).encode()


def decoded_key(key: bytes | None) -> tuple[JobKey, JobField] | None:
    """Whose record it is, and what it tells; None for a key that is not ours."""
    match _json(key):
        case [str(tenant), str(job), str(name)] if name in set(JobField):
            return (tenant, job), JobField(name)
        case _:
            return None


class JobOrders:
    """The orders as they are known here. Items `hold` to the order of their job while they wait or run."""

    def __init__(self, *, known: bool = True) -> None:
        """`known` is False where they are yet to be read: then no item begins before `all_read`."""
        self._states: dict[JobKey, JobState] = {}  # never RUNNING
        self._deadlines: dict[JobKey, datetime] = {}
        self._priorities: dict[JobKey, JobPriority] = {}  # never NORMAL
        self._scopes: dict[JobKey, set[asyncio.Timeout]] = {}  # of the items that hold to an order
        self._resumed: dict[JobKey, asyncio.Event] = {}  # of the jobs that are paused
        self._known = asyncio.Event()
        if known:
            self._known.set()

    def all_read(self) -> None:
        """The orders that stood on the topic when it was first looked at are known."""
        self._known.set()

    def state(self, job: JobKey) -> JobState:
        """What is to become of this job."""
        return self._states.get(job, JobState.RUNNING)

    def deadline(self, job: JobKey | None) -> datetime | None:
        """The deadline that was ordered for the job; None if its items' own ones hold."""
        return None if job is None else self._deadlines.get(job)

    def behind(self, job: JobKey | None) -> int:
        """How many priorities stand before that of the job: 0 for all as long as nobody has ordered any."""
        own = JobPriority.NORMAL if job is None else self._priorities.get(job, JobPriority.NORMAL)
        first = min(map(_RANKS.__getitem__, self._priorities.values()), default=_RANKS[own])
        return max(_RANKS[own] - min(first, _RANKS[JobPriority.NORMAL]), 0)

    def held_back(self) -> list[tuple[JobKey, JobState]]:
        """Every job that is paused or cancelled, in the order of the orders."""
        return list(self._states.items())

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Obey one record of the jobs topic. A record that is not ours, or makes no sense, changes nothing."""
        found = decoded_key(key)
        if found is None:
            log.warning("the jobs topic holds a record that is no order; it is left out")
            return
        job, field = found
        ordered = None if value is None else _value(value)
        match field:
            case JobField.STATE:
                state = JobState(ordered) if ordered in list(JobState) else JobState.RUNNING
                self._become(job, state)
            case JobField.PRIORITY:
                self._priorities.pop(job, None)
                if ordered in (JobPriority.HIGH, JobPriority.LOW):
                    self._priorities[job] = JobPriority(ordered)
                if len(self._priorities) > ORDERS_MAX:
                    del self._priorities[next(iter(self._priorities))]
            case JobField.DEADLINE:
                self._deadlines.pop(job, None)
                with contextlib.suppress(DeadItemError):
                    if isinstance(ordered, str) and (deadline := deadline_of(ordered)) is not None:
                        self._deadlines[job] = deadline
            case JobField.MANIFEST | JobField.RETRIED:
                pass  # who submits and who reads need them; the lane does not

    def _become(self, job: JobKey, state: JobState) -> None:
        self._states.pop(job, None)
        if state is not JobState.PAUSED and (resumed := self._resumed.pop(job, None)) is not None:
            resumed.set()
        if state is JobState.RUNNING:
            return
        self._states[job] = state
        if state is JobState.PAUSED:
            self._resumed.setdefault(job, asyncio.Event())
        if len(self._states) > ORDERS_MAX:
            self._become(next(iter(self._states)), JobState.RUNNING)
        for scope in self._scopes.get(job, ()):
            if not scope.expired():
                scope.reschedule(asyncio.get_running_loop().time())

    async def turn(self, job: JobKey | None) -> None:
        """Wait until the orders are known and the job is not paused. Raises DeadItemError if it is cancelled."""
        await self._known.wait()
        if job is None:
            return
        while (resumed := self._resumed.get(job)) is not None:
            await resumed.wait()
        if self.state(job) is JobState.CANCELLED:
            raise _cancelled(job)

    @contextlib.asynccontextmanager
    async def hold(self, job: JobKey | None) -> AsyncIterator[None]:
        """End what stands inside as soon as its job is no longer to run, wherever it waits.

        Raises DeadItemError if the job is cancelled, JobPausedError if it is paused.
        """
        if job is None:
            yield
            return
        try:
            async with asyncio.timeout(None) as scope:
                scopes = self._scopes.setdefault(job, set())
                scopes.add(scope)
                if job in self._states:
                    scope.reschedule(asyncio.get_running_loop().time())
                try:
                    yield
                finally:
                    scopes.discard(scope)
                    if not scopes and self._scopes.get(job) is scopes:
                        del self._scopes[job]
        except TimeoutError:
            if not scope.expired():
                raise  # somebody else's
            if self.state(job) is JobState.CANCELLED:
                raise _cancelled(job) from None
            raise JobPausedError from None


def _cancelled(job: JobKey) -> DeadItemError:
    return DeadItemError(DeadReason.CANCELLED, f"job {job[1]!r} was cancelled")


def _value(value: bytes) -> Any:
    """What is ordered; None for what is not an order."""
    match _json(value):
        case {"value": ordered}:
            return ordered
        case _:
            return None


def _json(text: bytes | None) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return None if text is None else json.loads(text)
    return None
