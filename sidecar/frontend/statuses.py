"""What a caller gets instead of a response: the scheduler's and the engine's refusals as gRPC statuses.

Texts begin as Triton's do, with the caller's own request id; the ids that the sidecar mints for the engine stay inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2

from sidecar.call import Metadata, Terminal
from sidecar.core.events import DeadLetter, Failed, Lost, Reject, RejectReason
from sidecar.errors import EngineError
from sidecar.frontend.caller_request import asked_by
from sidecar.token_call import RequestDeadError, RequestRejectedError

RETRY_HINT = "retry-after-ms"  # in the trailing metadata
STATUS_DETAILS = "grpc-status-details-bin"  # where gRPC's clients look for more than a code and a text
RICH_TEXT_BYTES_MAX = 512  # the text then goes twice, and a client takes 8 KiB of metadata in all
_CODES = {
    RejectReason.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RejectReason.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    RejectReason.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    RejectReason.ENGINE_DOWN: grpc.StatusCode.UNAVAILABLE,
    RejectReason.EXPIRED: grpc.StatusCode.DEADLINE_EXCEEDED,
    RejectReason.CLOSING: grpc.StatusCode.UNAVAILABLE,
}
_EXPIRED = "Request timeout expired"  # Triton's words, which programs look for
# How Triton begins the text for a request that it did not give to the model, which has no status on a stream, and the
# status that it has in a unary call (server: src/grpc/infer_handler.cc). Most such requests are refused here before.
_NOT_RUN = tuple(
    (re.compile(pattern), code)
    for pattern, code in (
        (r"\[request id: .*Exceeds maximum queue size", grpc.StatusCode.UNAVAILABLE),
        (r"GRPC server is shutting down|Request for unknown model: .* is not ready", grpc.StatusCode.UNAVAILABLE),
        (r"Request for unknown model|Unable to find shared memory", grpc.StatusCode.NOT_FOUND),
        (r"\[request id: |(failed to get|invalid) model version|Invalid (offset|byte)|'shared_memory_"
         r"|invalid value type|unexpected inference (in|out)put|output can't set", grpc.StatusCode.INVALID_ARGUMENT),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """A request that is with the scheduler, as its caller's stream knows it."""

    request_id: str
    caller_id: str


class CallerError(Exception):
    """The status, the message and perhaps the hint when to try again."""

    def __init__(
        self, code: grpc.StatusCode, message: str, retry_after_s: float | None = None, *, ran: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.ran = ran  # as a model's answer: Triton then says whose it is, and that no more follows
        self.retry_after_s = retry_after_s

    @property
    def ends_stream(self) -> bool:
        """True if it ends a stream with `triton_grpc_error`. Triton answers what it cannot take by a message."""
        return self.ran or self.code not in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)

    @property
    def trailing(self) -> Metadata:
        """The hint as metadata, if there is one: as a number, and as google.rpc.RetryInfo, which clients know."""
        if self.retry_after_s is None:
            return ()
        hint = ((RETRY_HINT, str(round(self.retry_after_s * 1000))),)
        if len(str(self).encode(errors="replace")) > RICH_TEXT_BYTES_MAX:
            return hint
        return (*hint, (STATUS_DETAILS, _rich(self.code, str(self), self.retry_after_s)))


def _rich(code: grpc.StatusCode, text: str, retry_after_s: float) -> bytes:
    """A google.rpc.Status that says when to try again. Its code and text must be those of the gRPC status."""
    status = status_pb2.Status(code=code.value[0], message=text.encode(errors="replace").decode())
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(round(retry_after_s * 1000))
    status.details.add().Pack(info)
    return bytes(status.SerializeToString())


def rejected(reason: str, message: str, retry_after_s: float | None, booked: Booked) -> CallerError:
    """For a request that the scheduler refused."""
    if retry_after_s is not None:
        message += f"; try again in {retry_after_s:g} s"
    text = f"{_EXPIRED}: {message}" if reason == RejectReason.EXPIRED else message
    as_model = reason in (RejectReason.EXPIRED, RejectReason.TOO_LARGE)  # Triton's answer comes from behind its door
    return CallerError(_CODES[RejectReason(reason)], asked_by(booked.caller_id) + text, retry_after_s, ran=as_model)


def given_up(reason: str, attempts: int, booked: Booked) -> CallerError:
    """For a request that will not be tried again."""
    return _engines(reason, booked, f"given up after {attempts} attempts: ")


def refused(outcome: Reject | DeadLetter, booked: Booked) -> CallerError:
    """For either of these outcomes."""
    if isinstance(outcome, DeadLetter):
        return given_up(outcome.reason, outcome.attempts, booked)
    return rejected(outcome.reason, outcome.message, outcome.retry_after_s, booked)


def failed(event: Terminal, booked: Booked) -> CallerError | None:
    """For a dispatch that ended without all of its answer; None if it has all."""
    if isinstance(event, Failed):
        return _engines(event.reason, booked)
    if isinstance(event, Lost):
        message = "the connection to the engine broke before the final response"
        return CallerError(grpc.StatusCode.UNAVAILABLE, asked_by(booked.caller_id) + message, ran=True)
    return None


def of_generation(error: BaseException, booked: Booked) -> CallerError:
    """For what `Driver.generate` raises."""
    match error:
        case RequestRejectedError():
            return rejected(error.reason, str(error), error.retry_after_s, booked)
        case RequestDeadError():
            return given_up(error.reason, error.attempts, booked)
        case _:
            return internal(error, booked.caller_id)


def internal(error: BaseException, caller_id: str) -> CallerError:
    """For a defect of ours that concerns one request. Its text may hold the prompt, so only its kind is told."""
    return CallerError(grpc.StatusCode.INTERNAL, f"{asked_by(caller_id)}the sidecar failed: {type(error).__name__}")


def _engines(reason: str, booked: Booked, before: str = "") -> CallerError:
    """The engine's own error, of which it told no status if it did not give the request to the model."""
    code, message = EngineError.parse(reason)
    message = _in_callers_words(message, booked)
    refused_as = next((as_code for pattern, as_code in _NOT_RUN if pattern.match(message)), None)
    if refused_as is not None and code is grpc.StatusCode.INTERNAL:
        code = refused_as
    return CallerError(code, before + message, ran=refused_as is None)


def _in_callers_words(message: str, booked: Booked) -> str:
    """`message` of the engine, which knows the request by an id of ours."""
    minted = rf"\[request id: [^\]]*{re.escape(booked.request_id)}\.\d+\] "
    return re.sub(minted, lambda _: asked_by(booked.caller_id), message)
