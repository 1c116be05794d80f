"""What the driver asks of those above it: a `Call` for each request, and `Listener`s that watch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sidecar.core.events import Action, DeadLetter, Dispatch, Ended, Event, Failed, Lost, Reject, Stopped
from sidecar.core.request import EndReason, Request

TRACEPARENT = "traceparent"
Metadata = Sequence[tuple[str, str | bytes]]  # of one gRPC call, in its order
Terminal = Ended | Stopped | Failed | Lost


@dataclass(slots=True)
class Timeline:
    """When things happened to one request, in seconds of the loop's clock, and what it cost."""

    arrived_s: float
    dispatched_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    output_tokens: int = 0
    dispatches: int = 0
    resumed: int = 0
    attempts: int = 1
    queue_wait_s: float = 0.0
    alone_s: float | None = None  # online: predicted from dispatch to end without offline beside it; None = unknown
    engine: str = ""
    kind: str = ""

    def began_late(self, request: Request, ttft_objective_ms: float) -> bool:
        """True if the first token came after the objective: that of `request` if it has one, else the given one."""
        if self.first_token_s is None:
            return False
        return self.first_token_s - self.arrived_s > (request.ttft_objective_ms or ttft_objective_ms) / 1000

    @property
    def slowdown(self) -> float | None:
        """From dispatch to end, measured ÷ predicted without offline; None where either is not known."""
        if not self.alone_s or self.dispatched_s is None or self.finished_s is None:
            return None
        return (self.finished_s - self.dispatched_s) / self.alone_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a request, as metrics and traces say it."""

    outcome: str  # ok, error, cancelled, expired, rejected
    error_type: str = ""


class Call(Protocol):
    """What an upper edge wants run. The driver calls it from one task at a time, and never after it is over.

    What one of its methods raises fails its dispatch, or is counted and logged, and concerns no other request.
    """

    @property
    def judged(self) -> bool:
        """True if its answer is token ids that we judge: one without a token is a fault of the engine, and one that is
        whole needs no final response. False if what the engine says is passed on."""

    @property
    def metadata(self) -> Metadata:
        """Return what to send along on the upstream stream, e.g. `traceparent`."""

    @property
    def own(self) -> bool:
        """True if no caller stands behind it: the sidecar's own keys go to the engine with it."""

    def request(self, dispatch: Dispatch, request_id: str) -> Any:
        """The ModelInferRequest of this dispatch, with the minted id. Raises BadRequestError if it cannot be built."""

    @property
    def stop_wanted(self) -> bool:
        """True once what came is all that is wanted, although the engine goes on."""

    def receive(self, response: Any) -> int:
        """Take one ModelStreamInferResponse. Return how many output tokens of it count.

        Raises MalformedAnswerError if it cannot be read.
        """

    @property
    def reused_blocks(self) -> int | None:
        """Return how many KV blocks of this dispatch the engine had in its cache; None as long as it has not said."""

    def ended_by(self) -> EndReason | None:
        """After the final response: why the engine ended; None if it can only have been our stop."""

    def settled(self, event: Terminal, timeline: Timeline, *, over: bool) -> None:
        """Count one dispatch as over; if `over`, the request too."""

    def refused(self, outcome: Reject | DeadLetter) -> None:
        """The request is over: refused, or dead."""


class Tracer(Protocol):
    """Knows the spans of requests."""

    def headers(self, request_id: str) -> Metadata:
        """Return what goes along with the dispatch that is about to begin."""


class Listener(Protocol):
    """Who watches: metrics, traces, a recorder. Must not wait; what it raises is counted and logged."""

    def handled(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """The scheduler has handled `event`."""

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        """The request is over."""
