"""What a caller gets instead of a response: the scheduler's and the engine's refusals as gRPC statuses."""

from __future__ import annotations

import grpc

from sidecar.core.events import DeadLetter, Failed, Lost, Reject, RejectReason
from sidecar.edge.calls import WorkDeadError, WorkRejectedError
from sidecar.edge.engine_client import Metadata
from sidecar.edge.errors import EngineError
from sidecar.edge.ports import Terminal

RETRY_HINT = "retry-after-ms"  # in the trailing metadata
_CODES = {
    RejectReason.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RejectReason.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    RejectReason.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    RejectReason.ENGINE_DOWN: grpc.StatusCode.UNAVAILABLE,
    RejectReason.EXPIRED: grpc.StatusCode.DEADLINE_EXCEEDED,
    RejectReason.CLOSING: grpc.StatusCode.UNAVAILABLE,
}


class CallerError(Exception):
    """The status, the message and perhaps the hint when to try again."""

    def __init__(
        self, code: grpc.StatusCode, message: str, retry_after_s: float | None = None, *, ran: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.ran = ran  # the engine had accepted it
        self.retry_after_s = retry_after_s

    @property
    def trailing(self) -> Metadata:
        """The hint as metadata, if there is one."""
        if self.retry_after_s is None:
            return ()
        return ((RETRY_HINT, str(round(self.retry_after_s * 1000))),)


def rejected(reason: str, message: str, retry_after_s: float | None) -> CallerError:
    """For work that the scheduler refused."""
    if retry_after_s is not None:
        message += f"; try again in {retry_after_s:g} s"
    return CallerError(_CODES[RejectReason(reason)], message, retry_after_s)


def given_up(reason: str, attempts: int) -> CallerError:
    """For work that will not be tried again."""
    code, message = EngineError.parse(reason)
    return CallerError(code, f"given up after {attempts} attempts: {message}", ran=True)


def refused(action: Reject | DeadLetter) -> CallerError:
    """For either of these actions."""
    if isinstance(action, DeadLetter):
        return given_up(action.reason, action.attempts)
    return rejected(action.reason, action.message, action.retry_after_s)


def failed(event: Terminal) -> CallerError | None:
    """For a dispatch that ended without all of its answer; None if it has all."""
    if isinstance(event, Failed):
        return CallerError(*EngineError.parse(event.reason), ran=True)
    if isinstance(event, Lost):
        message = "the connection to the engine broke before the final response"
        return CallerError(grpc.StatusCode.UNAVAILABLE, message, ran=True)
    return None


def of_generation(error: BaseException) -> CallerError:
    """For what `Driver.generate` raises."""
    match error:
        case WorkRejectedError():
            return rejected(error.reason, str(error), error.retry_after_s)
        case WorkDeadError():
            return given_up(error.reason, error.attempts)
        case _:
            return CallerError(grpc.StatusCode.INTERNAL, repr(error))
