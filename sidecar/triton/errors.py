"""What gRPC and Triton say went wrong, as an EngineError or a StreamBrokenError: translated here and nowhere else.

Whose fault an error is, its status says, never its words: `unexpected CUDA error` is nobody's wrong input. On a stream
Triton sends the text alone, so our models say the status at its end: `… must be >= 1 [INVALID_ARGUMENT]`. Triton can be
asked to end the stream with the status (`REAL_STATUS`), but before 2.68 it dies of that when errors come together
(measured with 2.51), so only a newer one is asked. What Triton refuses before a model sees it comes as a
text alone even then. A text without a status is INTERNAL, and may be tried again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from sidecar.errors import EngineError, MalformedAnswerError, StreamBrokenError

REAL_STATUS = "triton_grpc_error"  # metadata of a stream; Triton 24.08 and later
# What a connection that breaks ends with, so the engine may run on. Any other status is Triton's own word.
_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)

# grpc.aio's own words where a write meets a stream that the server has ended already: the server's status is lost then.
STATUS_LOST = "Internal error from Core"
_RESTRICTED = "This protocol is restricted"  # how Triton refuses whoever lacks a key, with UNAVAILABLE
_SAID = re.compile(r" \[([A-Z_]{2,32})\]$")  # by a model of ours, at the end of its text


class EndedEarlyError(EngineError):
    """The engine ended the stream before it took the request; grpc.aio has lost why."""

    def __init__(self) -> None:
        super().__init__("the engine ended the stream before it took the request", grpc.StatusCode.UNAVAILABLE)


def code_of(text: str) -> grpc.StatusCode:
    """The status that a model of ours says at the end of its error's text; INTERNAL for any other text."""
    said = _SAID.search(text[-40:])
    code = grpc.StatusCode.__members__.get(said[1]) if said else None
    # An error is never OK: grpc.aio cannot end a call with that, and the caller would wait for ever.
    return grpc.StatusCode.INTERNAL if code is None or code is grpc.StatusCode.OK else code


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
    """Raise EngineError if a ModelStreamInferResponse is one, or is None, as grpc.aio reads bytes that are none."""
    if response is None:
        raise MalformedAnswerError("the engine's answer is no message")
    if response.error_message:
        raise EngineError(response.error_message, code_of(response.error_message))


def _translated(error: grpc.aio.AioRpcError) -> EngineError | StreamBrokenError:
    """Answered with an error, so the slot is free; or broken while the engine may run on."""
    message = error.details() or error.code().name
    if message == STATUS_LOST:
        return EndedEarlyError()
    if error.code() in _BROKEN and not message.startswith(_RESTRICTED):
        return StreamBrokenError(f"{error.code().name}: {message}")
    return EngineError(message, error.code())
