"""What the offline lane, and each partition of it, is doing, and why: for logs, gauges, health and the status page.

A state changes in one place, and each change is one line of the log. What is tried again meanwhile adds no line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

log = logging.getLogger(__name__)
SAME_CAUSE_S = 60.0  # another wording of the same cause is logged at most this often


class Phase(StrEnum):
    """What is being done."""

    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"  # a part of the partitions waits, the rest goes on
    WAITING = "waiting"  # looks again by itself, at bounded intervals
    DRAINING = "draining"
    STOPPED = "stopped"


class Cause(StrEnum):
    """Why. Finite: these are labels of a metric."""

    NONE = "none"  # nothing keeps it
    ASSIGNMENT = "assignment"  # the group has not assigned partitions yet
    OPENING = "opening"  # the partition is being opened
    UNREACHABLE = "unreachable"  # no broker answers
    AUTHENTICATION = "authentication"  # the broker refuses the name, the password or the token
    TLS = "tls"  # no trusted connection can be made
    SECRET = "secret"  # a password, token or certificate cannot be read
    RIGHTS = "rights"  # the broker denies a right, which is named
    TOPIC_MISSING = "topic_missing"  # a topic of the settings does not exist
    PARTITION_MISSING = "partition_missing"  # a topic to write to has fewer partitions than the requests topic
    NO_OFFSET = "no_offset"  # the group has no offset, and first_start is `refuse`
    POSITION_LOST = "position_lost"  # the log does not hold the committed offset
    FOREIGN_METADATA = "foreign_metadata"  # another program commits to the group
    PROGRESS_UNREADABLE = "progress_unreadable"  # the progress topic holds records that are not ours
    INSTANCE_IN_USE = "instance_in_use"  # another process of the group runs under this instance_id
    FENCED = "fenced"  # another owner has opened the partition
    RECORD_REFUSED = "record_refused"  # a topic takes not even a shortened dead letter
    STUCK = "stuck"  # the consumer did nothing although there was work
    KAFKA = "kafka"  # any other error of Kafka
    DEFECT = "defect"  # a programming error; only this one stops the lane


OPERATOR = frozenset(
    (
        *(Cause.AUTHENTICATION, Cause.TLS, Cause.SECRET, Cause.RIGHTS, Cause.TOPIC_MISSING, Cause.PARTITION_MISSING),
        *(Cause.NO_OFFSET, Cause.POSITION_LOST, Cause.FOREIGN_METADATA, Cause.PROGRESS_UNREADABLE),
        *(Cause.INSTANCE_IN_USE, Cause.RECORD_REFUSED),
    )
)
"""Causes that a person has to mend: looked at again in growing steps up to `look_again_s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """A phase, its cause, the cause in words, and since when (in seconds of the lane's clock) both hold."""

    phase: Phase = Phase.STARTING
    cause: Cause = Cause.NONE
    detail: str = ""
    since_s: float = 0.0

    @property
    def text(self) -> str:
        """For people: `waiting: no broker answers at …`."""
        return f"{self.phase}: {self.detail}" if self.detail else str(self.phase)


@dataclass(slots=True)
class Stated:
    """The state of `name` now. `become` logs each change of phase or cause once; a `quiet` one never logs."""

    name: str
    clock: Callable[[], float]
    quiet: bool = False
    now: LaneState = field(init=False)
    _logged_s: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self.now = LaneState(since_s=self.clock())

    def become(self, phase: Phase, cause: Cause = Cause.NONE, detail: str = "") -> None:
        """This holds from now on, or still holds."""
        before, now_s = self.now, self.clock()
        same = (before.phase, before.cause) == (phase, cause)
        self.now = LaneState(phase=phase, cause=cause, detail=detail, since_s=before.since_s if same else now_s)
        if self.quiet or (same and (before.detail == detail or now_s - self._logged_s < SAME_CAUSE_S)):
            return
        self._logged_s = now_s
        after = "" if before.cause is Cause.NONE else f" (before: {before.cause}, {now_s - before.since_s:.1f} s)"
        level = logging.WARNING if phase in (Phase.DEGRADED, Phase.WAITING) else logging.INFO
        log.log(level, "%s is %s%s", self.name, self.now.text, after)


def together(own: LaneState, partitions: Iterable[tuple[int, LaneState]]) -> LaneState:
    """The state of a lane whose consumer is in `own`: that of its partitions where some of them do not run."""
    every = list(partitions)
    waiting = [(number, each) for number, each in every if each.phase in (Phase.WAITING, Phase.DEGRADED)]
    if own.phase is not Phase.RUNNING or not waiting:
        return own
    number, first = waiting[0]
    every_one = len(waiting) == len(every) and all(each.phase is Phase.WAITING for _, each in waiting)
    detail = f"partition {number}: {first.detail}"
    if len(every) > 1:
        detail = f"{len(waiting)} of {len(every)} partitions; {detail}"
    return LaneState(
        phase=Phase.WAITING if every_one else Phase.DEGRADED,
        cause=first.cause,
        detail=detail,
        since_s=min(each.since_s for _, each in waiting),
    )
