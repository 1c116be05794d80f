"""What changes about a piece of work while the scheduler has it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sidecar.core.work import Work

if TYPE_CHECKING:
    from sidecar.core.engine import Engine


class State(StrEnum):
    """Where a work is. The table of its transitions stands in `scheduler.py`."""

    WAITING = "waiting"  # in the queue of its lane
    BACKING_OFF = "backing_off"  # failed; returns to its queue at a set time
    RUNNING = "running"  # dispatched; one terminal event is owed
    ABORTING = "aborting"  # told to stop for good; its slots are DRAINING until the terminal event
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Item:
    """One work and its fate so far. Owned by the scheduler; nobody else changes it."""

    work: Work
    sequence: int  # order of arrival, which breaks ties
    waiting_since_s: float
    state: State = State.WAITING
    ticket: int = 0  # the push whose heap entry is the live one; 0 = in no queue
    generated_tokens: int = 0  # kept from the dispatches that are over
    streamed_tokens: int = 0  # of the dispatch in progress, as far as reported
    attempts: int = 0  # failures so far
    losses: int = 0  # engines lost under it since it last got on
    engine: Engine | None = None  # where it runs

    @property
    def output_tokens_left(self) -> int:
        """How many tokens it may still generate; at least 1, or it would be gone."""
        return self.work.output_tokens_max - self.generated_tokens
