"""What the end of a dispatch means: to the scheduler, which counts slots, and to the call, which wants an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

import grpc

from sidecar.call import Outcome, Terminal
from sidecar.core.events import DeadLetter, Ended, Failed, Lost, Reject, RejectReason, Stopped
from sidecar.core.request import EndReason
from sidecar.driver.containment import Containment, place_of
from sidecar.driver.dispatches import Alive, Dispatched
from sidecar.errors import BadRequestError, EngineError

_WHOLE = (EndReason.END_ID, EndReason.STOP_WORD)  # an answer that ends so has nothing after it
EMPTY_OUTPUT = "empty_output"  # how the reason begins where an engine ended without a token


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchVerdict:
    """One end. The two differ where the engine's slot and the caller's answer do not end alike."""

    event: Terminal  # for the scheduler
    heard: Terminal  # by the call
    whole: bool = False  # nothing is left to generate, although the scheduler cannot know


def of_final(alive: Alive, running: Dispatched, *, tokens_max: int, block_tokens: int) -> DispatchVerdict:
    """After a final response: the engine has let the slot go. Raises EngineError if the answer is none.

    `tokens_max` is the length of the engine, `block_tokens` how many tokens a block of its KV cache holds.
    """
    if running.fault is not None:
        raise running.fault
    request_id, call = alive.request.id, alive.call
    reason, silent = call.ended_by(), False
    if reason is None and running.tokens >= running.dispatch.output_tokens:
        reason = EndReason.LENGTH  # also when we had asked it to stop
    elif reason is None and not running.stopping:
        if call.judged and not alive.generated_tokens + running.tokens:
            raise EngineError(f"{EMPTY_OUTPUT}: the engine ended without a token", grpc.StatusCode.INTERNAL)
        reason, silent = EndReason.END_ID, True  # it ended by itself and kept its end id
    blocks = call.reused_blocks
    reused = None if blocks is None else blocks * block_tokens
    if reason is None:
        stopped = Stopped(request_id=request_id, output_tokens=running.tokens, reused_tokens=reused)
        return DispatchVerdict(event=stopped, heard=stopped)
    ended = Ended(request_id=request_id, reason=reason, output_tokens=running.tokens, reused_tokens=reused)
    if silent and alive.request.prompt_tokens + alive.generated_tokens + running.tokens >= tokens_max:
        return DispatchVerdict(event=ended, heard=replace(ended, reason=EndReason.LENGTH))  # cut, and nothing more fits
    return DispatchVerdict(event=ended, heard=ended)


def after_final(
    alive: Alive, running: Dispatched, contained: Containment, tokens_max: int, block_tokens: int
) -> DispatchVerdict:
    """The same as `of_final`, where an answer that is none is a failed dispatch."""
    try:
        return of_final(alive, running, tokens_max=tokens_max, block_tokens=block_tokens)
    except Exception as error:
        failed = failed_of(alive, error if isinstance(error, EngineError) else fault_of(error, running, contained))
        return DispatchVerdict(event=failed, heard=failed)


def of_broken(alive: Alive, running: Dispatched) -> DispatchVerdict:
    """After a stream that ended without a final response, or that never began."""
    request_id = alive.request.id
    if running.fault is not None:
        failed = failed_of(alive, running.fault)
        # Without the engine's word it may go on with the request: its slot is free only after a while.
        return DispatchVerdict(event=failed if running.confirmed else Lost(request_id=request_id), heard=failed)
    lost = Lost(request_id=request_id, output_tokens=running.tokens)
    if alive.call.judged and running.tokens and (reason := alive.call.ended_by()) in _WHOLE and reason is not None:
        ended = Ended(request_id=request_id, reason=reason, output_tokens=running.tokens)
        return DispatchVerdict(event=lost, heard=ended, whole=True)  # it broke after the last token of the answer
    return DispatchVerdict(event=lost, heard=lost)


def failed_of(alive: Alive, fault: EngineError) -> Failed:
    """The dispatch failed of this."""
    return Failed(request_id=alive.request.id, reason=fault.reason, retryable=fault.retryable)


def fault_of(error: Exception, running: Dispatched, contained: Containment) -> EngineError:
    """Return what a dispatch failed of. Only messages that hold neither prompt nor output are repeated."""
    if isinstance(error, BadRequestError):
        return EngineError(str(error), error.code)
    contained.note(f"a dispatch to engine {running.dispatch.engine}", error)
    if isinstance(error, EngineError):
        return error
    if running.stream is None and isinstance(error, ValueError | TypeError | ArithmeticError):
        return EngineError(f"the request cannot be built: {place_of(error)}", grpc.StatusCode.INVALID_ARGUMENT)
    return EngineError(f"a fault of the sidecar: {place_of(error)}", grpc.StatusCode.INTERNAL)


def outcome_of(event: Terminal, *, cancelled: bool) -> Outcome:
    """Return how a request whose last dispatch ended so is counted."""
    match event:
        case _ if cancelled:
            return Outcome(outcome="cancelled")
        case Ended() | Stopped():
            return Outcome(outcome="ok")
        case Failed(reason=reason):
            return Outcome(outcome="error", error_type=reason.split(":", 1)[0])
        case Lost():
            return Outcome(outcome="error", error_type=grpc.StatusCode.UNAVAILABLE.name)
        case _:
            assert_never(event)


def outcome_of_refusal(refusal: Reject | DeadLetter) -> Outcome:
    """Return how a request is counted that was refused or given up."""
    if isinstance(refusal, DeadLetter):
        return Outcome(outcome="error", error_type="dead_letter")
    expired = refusal.reason is RejectReason.EXPIRED
    return Outcome(outcome="expired" if expired else "rejected", error_type=refusal.reason)
