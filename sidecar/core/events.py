"""What may happen to the scheduler (`Event`) and what it may ask of a driver (`Action`).

Both are closed unions of frozen dataclasses. Each driver ends its `match` over `Action` with `assert_never`, so that
an action which one of them forgets fails type checking. The duties that go with them stand in `scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sidecar.core.deadlines import JobVerdict
from sidecar.core.request import DispatchKind, EndReason, Request
from sidecar.core.settings import TenantSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A new request. Answered at once by nothing (it waits), a Dispatch or a Finished."""

    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """What one engine streamed since the last tick (10 ms): no event per token."""

    engine: str
    tokens: tuple[tuple[str, int], ...]  # (request id, output tokens since the last tick), each at most once
    first_tokens: tuple[str, ...] = ()  # ids whose current dispatch gave its first token in this tick
    gaps_s: tuple[float, ...] = ()  # gaps between consecutive tokens of one stream, in seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The engine finished a dispatch by itself (also when we had asked it to stop). Its slots are free."""

    request_id: str
    reason: EndReason
    output_tokens: int  # of this dispatch
    reused_tokens: int | None = None  # prompt tokens the engine took from its KV cache; None = it did not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """Final without a reason, after our stop: the request keeps its tokens. Its slots are free."""

    request_id: str
    output_tokens: int  # of this dispatch
    reused_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The engine answered with an error. Its slots are free; tokens of this dispatch are gone."""

    request_id: str
    reason: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The stream broke without a final response. The slots stay DRAINING for a while: the engine may still run it."""

    request_id: str
    output_tokens: int = 0  # those that did arrive are valid and are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The caller is gone (cancel, deadline, disconnect) or the request is no longer ours. Unknown ids are ignored."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUp:
    """A probe of this engine succeeded. `slots` is what we own of it: a restarted engine starts empty."""

    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDown:
    """Probes of this engine fail. The driver reports each dispatch on it (Failed or Lost) by itself."""

    engine: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One successful scrape of an engine's gauges. A failed one is `None` values with `ok=False`."""

    engine: str
    ok: bool
    active_requests: int | None = None
    kv_blocks_max: int | None = None
    kv_blocks_free: int | None = None
    tokens_per_block: int | None = None
    iterations: int | None = None  # run since the engine started: the other gauges are as of the last one


@dataclass(frozen=True, slots=True, kw_only=True)
class Woke:
    """The time of `next_deadline_s()` has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantsChanged:
    """The weights and limits of tenants are these from here on, as if the settings had said so. What waits or runs
    stays, also where a tenant has more of it than it may now."""

    tenants: Mapping[str, TenantSettings]
    tenant_default: TenantSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """No new request from here on: arrivals are rejected, online drains, offline ends at its next slice."""


Event = (
    Arrived
    | Progressed
    | Ended
    | Stopped
    | Failed
    | Lost
    | Cancelled
    | EngineUp
    | EngineDown
    | Measured
    | Woke
    | TenantsChanged
    | Closing
)


class RejectReason(StrEnum):
    """Why a request was refused. The edge maps each to a gRPC status."""

    QUEUE_FULL = "queue_full"  # RESOURCE_EXHAUSTED, with a retry hint
    UNKNOWN_MODEL = "unknown_model"  # NOT_FOUND
    TOO_LARGE = "too_large"  # INVALID_ARGUMENT: more slots or tokens than any engine of the model has
    ENGINE_DOWN = "engine_down"  # UNAVAILABLE
    EXPIRED = "expired"  # DEADLINE_EXCEEDED: the deadline passed while it waited
    CLOSING = "closing"  # UNAVAILABLE: this sidecar is shutting down


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Start (or go on with) this request on this engine now.

    Exactly one of Ended, Stopped, Failed, Lost is owed for it.
    """

    request_id: str
    engine: str
    kind: DispatchKind
    slots: int
    output_tokens: int  # request_output_len of this call: a slice, or all that is left
    queue_wait_s: float  # since it began to wait for this dispatch
    contended: bool = False  # both lanes held a candidate, and one of them keeps waiting after this dispatch
    prompt_tokens: int | None = None  # send only so many of the prompt's ids, to fill the KV cache; None = all ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempt:
    """Stop this offline dispatch; the request keeps its tokens and waits anew. Its terminal event is still owed."""

    request_id: str
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Stop this dispatch for good. Its terminal event is still owed, and the request is over with it."""

    request_id: str
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """The request is refused: it could not wait, or waited too long, or nobody is left who would run it."""

    reason: RejectReason
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """The offline request will not be tried again: keep it with its reason."""

    reason: str
    attempts: int


class Ending(StrEnum):
    """How a request is over that was neither refused nor given up."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"  # an online request whose dispatch was stopped, failed or was lost: nothing resumes it
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """This request is over, and forgotten. It comes once for each request that arrived, and nothing about that work
    after it.

    It comes with the arrival, while the request waits, or with the terminal event of its last dispatch.
    """

    request_id: str
    outcome: Ending | Reject | DeadLetter
    alone_s: float | None = None  # online, dispatch to end: predicted without offline beside it; None = unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseIntake:
    """The offline queue of this model has reached its high mark: take no more requests from Kafka for it."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeIntake:
    """The offline queue of this model has fallen to its low mark."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Whether this job will meet its deadline is judged anew: tell who asked for it. Nothing else is to be done."""

    model: str
    tenant: str
    job: str
    verdict: JobVerdict
    deadline_s: float
    eta_p50_s: float  # from now; inf = not known
    eta_p90_s: float


Action = Dispatch | Preempt | Abort | Finished | PauseIntake | ResumeIntake | Forecast
