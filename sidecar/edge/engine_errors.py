"""What gRPC and Triton say went wrong, as an EngineError or a StreamBrokenError: translated here and nowhere else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from sidecar.edge.errors import EngineError, StreamBrokenError

# A stream answers with text only; these are the texts of Triton's server and core for each status.
_CODES: tuple[tuple[re.Pattern[str], grpc.StatusCode], ...] = (
    (re.compile(r"unknown model|model .* (not found|has no available versions)", re.I), grpc.StatusCode.NOT_FOUND),
    (re.compile(r"is not healthy|not ready|shutting down|Exceeds maximum queue size|timeout expired", re.I),
     grpc.StatusCode.UNAVAILABLE),
    (re.compile(r"unexpected|expected|invalid|must be|unsupported|exceeds|missing|too long|shape", re.I),
     grpc.StatusCode.INVALID_ARGUMENT),
)  # fmt: skip
_RESTRICTED = "This protocol is restricted"  # how Triton refuses whoever lacks a key, with UNAVAILABLE


def code_of(message: str) -> grpc.StatusCode:
    """The status that fits the text of an `error_message`; INTERNAL if the text is unknown."""
    return next((code for pattern, code in _CODES if pattern.search(message)), grpc.StatusCode.INTERNAL)


@contextmanager
def translated_errors(call: Any) -> Iterator[None]:
    """What grpc.aio raises becomes EngineError or StreamBrokenError; the stream is over afterwards."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _translated(error) from None
    except asyncio.InvalidStateError:  # grpc.aio: a write to a stream that has failed already
        raise StreamBrokenError("the stream broke before the request was sent") from None
    except asyncio.CancelledError:  # grpc.aio: also what a read says once somebody cancelled the stream
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise StreamBrokenError("the stream was cancelled") from None
    finally:
        call.cancel()  # does nothing to a stream that has ended


def raise_if_error(response: Any) -> None:
    """Raise EngineError if a ModelStreamInferResponse is one."""
    if response.error_message:
        raise EngineError(response.error_message, code_of(response.error_message))


def _translated(error: grpc.aio.AioRpcError) -> EngineError | StreamBrokenError:
    """Refused before it ran, or broken while it may run on: only the first is safe to call free."""
    message = error.details() or error.code().name
    if message.startswith(_RESTRICTED) or error.code() in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ):
        return EngineError(message, error.code())
    return StreamBrokenError(f"{error.code().name}: {message}")
