"""What every inbound call goes through: it is bounded, counted, timed and traced, and its unforeseen faults end here.

A fault that nobody foresaw ends its own call, with INTERNAL and no word of what the caller sent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio

from sidecar.call import Metadata
from sidecar.frontend.access import CALLER, Access
from sidecar.frontend.statuses import CallerError
from sidecar.settings.limits import LimitSettings
from sidecar.telemetry.faults import FaultLog, leaves
from sidecar.telemetry.tracing import CURRENT, Tracing
from sidecar.triton.errors import REAL_STATUS

Handler = Callable[[Any, Any], Awaitable[Any]]

logger = logging.getLogger(__name__)
DETAILS_BYTES_MAX = 2_048  # gRPC encodes one byte as up to three, and a client takes 8 KiB of metadata in all
CUT = "..."
_HOP_BY_HOP = ("grpc-", ":")
_NOT_FORWARDED = {"user-agent", "te", "content-type", REAL_STATUS}  # the last acts on a whole stream
RETRY_AFTER_S = 1.0  # a request ends every few tens of milliseconds, and the bytes it held are free again
UNFORESEEN = "internal error of the sidecar; its log names the place"


class RpcObserver(Protocol):
    """Who counts inbound calls."""

    def served(self, method: str, code: str, seconds: float) -> None:
        """A call of this method has ended with this status."""


class HeldBytes:
    """The bytes of all requests that wait or run: under a bound on their number a few could still fill the memory."""

    def __init__(self, limits: LimitSettings | None = None) -> None:
        self.bytes_max = (limits or LimitSettings()).held_bytes_max
        self.used = 0

    def take(self, size: int) -> int:
        """`size` more bytes are held; give the same number back. Raises CallerError if that is too much."""
        if self.used + size > self.bytes_max:
            raise CallerError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"requests of {self.used} bytes wait or run, {size} more are beyond the limit of {self.bytes_max} "
                f"(limits.held_bytes_max); try again in {RETRY_AFTER_S:g} s",
                RETRY_AFTER_S,
            )
        self.used += size
        return size

    def give_back(self, size: int) -> None:
        """These bytes are held no longer."""
        self.used -= size


class Calls:
    """All inbound calls: how many are open, and how each is served."""

    def __init__(
        self,
        observer: RpcObserver,
        tracing: Tracing | None,
        held: HeldBytes,
        limits: LimitSettings | None = None,
        access: Access | None = None,
    ) -> None:
        self._observer = observer
        self._tracing = tracing
        self._held = held
        self._calls_max = (limits or LimitSettings()).calls_max
        self._open = 0
        self._access = access
        self._faults = FaultLog(logger)

    def infer(self, handler: Handler, method: str) -> Handler:
        """`handler`, traced, and bounded in calls; a unary request's bytes count as held until it is answered."""

        async def bounded(request: Any, context: Any) -> Any:
            size = len(request) if isinstance(request, bytes) else 0
            if self._open >= self._calls_max:
                text = f"{self._open} calls are open, as many as may be (limits.calls_max)"
                error = CallerError(grpc.StatusCode.RESOURCE_EXHAUSTED, text, RETRY_AFTER_S)
                await refuse(context, error.code, str(error), error.trailing)
            if (name := unreadable_metadata(context.invocation_metadata())) is not None:
                await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"metadata '{name}' is no printable ASCII")
            try:
                if self._access is not None:
                    self._access.enter(method, context)
                self._held.take(size)
            except CallerError as error:
                await refuse(context, error.code, str(error), error.trailing)
            self._open += 1
            try:
                return await handler(request, context)
            finally:
                self._open -= 1
                self._held.give_back(size)

        return self.observed(bounded, method, self._tracing)

    def observed(self, handler: Handler, method: str, tracing: Tracing | None = None) -> Handler:
        """`handler`, with each call counted by its status and duration, and traced."""

        async def observed(request: Any, context: Any) -> Any:
            begun_s = time.monotonic()
            trace = None if tracing is None else tracing.rpc(dict(context.invocation_metadata() or ()))
            CURRENT.set(trace)
            code = "CANCELLED"  # what is true if the caller goes away meanwhile
            try:
                answer = await handler(request, context)
                code = "OK"
                return answer
            except grpc.aio.AbortError:
                code = grpc.StatusCode(_status(context.code())).name
                raise
            except Exception as error:
                if _caller_is_gone(error):
                    raise asyncio.CancelledError from None  # grpc.aio then sends nothing and logs nothing
                code = grpc.StatusCode.INTERNAL.name
                self._faults.log(method, error)
                await refuse(context, grpc.StatusCode.INTERNAL, UNFORESEEN)
            finally:
                self._observer.served(method, code, time.monotonic() - begun_s)
                if tracing is not None and trace is not None:
                    tracing.end_rpc(trace, method, code)

        return observed


async def refuse(context: Any, code: grpc.StatusCode, text: str, trailing: Metadata = ()) -> NoReturn:
    """End the call with this status. Raises AbortError.

    The text is cut to what a client takes. One that gRPC cannot encode would leave the client without an answer: once
    `abort` has begun, grpc.aio believes that the status is sent.
    """
    await context.abort(code, details(text), tuple(trailing))
    raise AssertionError("abort has raised already")


def details(text: str) -> str:
    """`text` as the details of a gRPC status: whole characters, and not too many."""
    raw = text.encode(errors="replace")
    if len(raw) <= DETAILS_BYTES_MAX:
        return raw.decode()
    return raw[: DETAILS_BYTES_MAX - len(CUT)].decode(errors="ignore") + CUT


def forwardable(metadata: Any) -> Metadata:
    """The metadata that belongs to the caller and the server, not to one hop between them.

    A key that was shown here is not Triton's to see.
    """
    kept_back = _NOT_FORWARDED if CALLER.get() is None else _NOT_FORWARDED | {"authorization"}
    return tuple(
        (key, value) for key, value in metadata or () if key not in kept_back and not key.startswith(_HOP_BY_HOP)
    )


def unreadable_metadata(metadata: Any) -> str | None:
    """The name of an entry whose value gRPC does not let through: it takes them, but would not send them on."""
    for name, value in metadata or ():
        if not name.endswith("-bin") and not (isinstance(value, str) and value.isascii() and value.isprintable()):
            return str(name)
    return None


def _caller_is_gone(error: BaseException) -> bool:
    """True if this is only gRPC saying that nothing can be read or written any more."""
    return all(
        isinstance(each, grpc.aio.BaseError) and not isinstance(each, grpc.aio.UsageError) for each in leaves(error)
    )


def _status(code: Any) -> Any:
    """grpc.aio keeps the status of an aborted call as its number."""
    if isinstance(code, int):
        return next((each.value for each in grpc.StatusCode if each.value[0] == code), grpc.StatusCode.UNKNOWN.value)
    return code.value if code is not None else grpc.StatusCode.UNKNOWN.value
