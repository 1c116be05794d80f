"""What the driver in simulated time knows of one request."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from sidecar.core.events import DeadLetter, Dispatch, Ending, Reject
from sidecar.core.request import Request
from sidecar.sim.workloads import SimulatedRequest


class BrokenPromiseError(AssertionError):
    """The scheduler or a driver did what the contract between them forbids: a bug of ours, never input."""


@dataclass(slots=True)
class RunningDispatch:
    """One dispatch that owes its terminal event."""

    action: Dispatch
    reported_tokens: int = 0  # told to the scheduler by Progressed
    stopping: bool = False
    aborting: bool = False  # the request is gone once the engine confirms


@dataclass(slots=True, eq=False)
class RequestProgress:
    """One job from its arrival to its end, as the driver knows it."""

    job: SimulatedRequest
    kept_tokens: int = 0  # what a resume sends again, and what the caller has in the end
    running: RunningDispatch | None = None
    dispatches: int = 0
    outcome: str = ""  # "" = alive; else ended, incomplete, cancelled, rejected or dead
    first_token_s: float = inf
    finished_s: float = inf

    @property
    def request(self) -> Request:
        """As the scheduler knows it."""
        return self.job.request

    @property
    def tokens_left(self) -> int:
        """Return how many tokens come before the end; only the engine knows."""
        return self.job.output_tokens - self.kept_tokens


def outcome_word(outcome: Ending | Reject | DeadLetter) -> str:
    """In one word."""
    match outcome:
        case Reject():
            return "rejected"
        case DeadLetter():
            return "dead"
        case Ending.COMPLETE:
            return "ended"
        case _:
            return outcome.value
