"""The lower edge: one Triton endpoint over raw grpc.aio stubs, one upstream stream per request.

A stream per request is what makes cancelling one of them possible (Triton has no per-request cancel on a shared
stream) and what gives each its own trace parent. Errors of gRPC are translated here and nowhere else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from sidecar.edge import wire
from sidecar.edge.errors import EngineError, StreamBrokenError

SERVICE = "inference.GRPCInferenceService"
Metadata = Sequence[tuple[str, str | bytes]]

# Messages may be as large as the server's. A peer that hangs is noticed by the prober, long before keepalive would.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 300_000),  # the server's least allowed interval between pings without data
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # a restarted engine is found within a second
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
)

# A stream answers with text only; these are the texts of Triton's server and core for each status.
_CODES: tuple[tuple[re.Pattern[str], grpc.StatusCode], ...] = (
    (re.compile(r"unknown model|model .* (not found|has no available versions)", re.I), grpc.StatusCode.NOT_FOUND),
    (re.compile(r"is not healthy|not ready|shutting down|Exceeds maximum queue size|timeout expired", re.I),
     grpc.StatusCode.UNAVAILABLE),
    (re.compile(r"unexpected|expected|invalid|must be|unsupported|exceeds|missing|too long|shape", re.I),
     grpc.StatusCode.INVALID_ARGUMENT),
)  # fmt: skip


def code_of(message: str) -> grpc.StatusCode:
    """The status that fits the text of an `error_message`; INTERNAL if the text is unknown."""
    return next((code for pattern, code in _CODES if pattern.search(message)), grpc.StatusCode.INTERNAL)


class EngineClient:
    """An open channel to one endpoint. Close it when no stream is left."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stream = self._channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    def open(self, metadata: Metadata | None = None) -> grpc.aio.StreamStreamCall[Any, Any]:
        """A new stream. Cancel it to abandon the request; the engine notices at its next check period."""
        return self._stream(metadata=metadata)

    def raw_unary(self, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
        """A method of Triton's by its full name, bytes in and bytes out: for what is passed through."""
        return self._channel.unary_unary(method)

    def raw_stream(self, method: str) -> grpc.aio.StreamStreamMultiCallable[bytes, bytes]:
        """Like `raw_unary`, for a stream."""
        return self._channel.stream_stream(method)

    async def stop(self, model: str, request_id: str, timeout_s: float) -> None:
        """The engine was told to stop this request, or knows none of that id. Its own final response follows.

        Raises EngineError if the engine refuses, StreamBrokenError if it does not answer in time.
        """
        await responses(self._stream(timeout=timeout_s), stop_request(model, request_id))

    async def generate(self, model: str, ids: Sequence[int], output_tokens: int, timeout_s: float) -> tuple[int, ...]:
        """Prompt and output ids of one short generation, as the engine returns them. Errors as for `stop`."""
        request = token_request(model, ids, output_tokens, "check")
        wire.add_tensor(request, "exclude_input_in_output", "BOOL", (False,), (1, 1))
        found = await responses(self._stream(timeout=timeout_s), request)
        return tuple(token for each in found for token in wire.output_values(each, "output_ids") or ())


async def send(call: Any, request: Any) -> None:
    """`request` is the only one of a fresh stream. Call it, and read on, inside `translated_errors`."""
    request.parameters[wire.EMPTY_FINAL].bool_param = True
    await call.write(request)
    await call.done_writing()


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


async def responses(call: Any, request: Any) -> list[Any]:
    """Each ModelInferResponse to `request`, the final one last: for short exchanges.

    Raises EngineError for an error of the engine, StreamBrokenError if no final response came.
    """
    found: list[Any] = []
    with translated_errors(call):
        await send(call, request)
        while (response := await call.read()) is not grpc.aio.EOF:
            raise_if_error(response)
            found.append(response.infer_response)
    if not found or not wire.is_final(found[-1]):
        raise StreamBrokenError("the stream ended without a final response")
    return found


def raise_if_error(response: Any) -> None:
    """Raise EngineError if a ModelStreamInferResponse is one."""
    if response.error_message:
        raise EngineError(response.error_message, code_of(response.error_message))


def _translated(error: grpc.aio.AioRpcError) -> EngineError | StreamBrokenError:
    """Refused before it ran, or broken while it may run on: only the first is safe to call free."""
    message = error.details() or error.code().name
    if error.code() in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ):
        return EngineError(message, error.code())
    return StreamBrokenError(f"{error.code().name}: {message}")


def token_request(model: str, ids: Sequence[int], output_tokens: int, request_id: str = "") -> Any:
    """A request by token ids with the three inputs that every engine model needs."""
    request = wire.InferRequest(model_name=model, id=request_id)
    wire.add_tensor(request, "input_ids", "INT32", ids, (1, len(ids)))
    wire.add_tensor(request, "input_lengths", "INT32", (len(ids),), (1, 1))
    wire.add_tensor(request, "request_output_len", "INT32", (output_tokens,), (1, 1))
    return request


def stop_request(model: str, request_id: str) -> Any:
    """A request that stops another by its id. The tensors of a generation must stand in it, though unused."""
    request = token_request(model, (0,), 1, request_id)
    wire.add_tensor(request, "stop", "BOOL", (True,), (1, 1))
    return request
