"""The lower edge: one Triton endpoint over raw grpc.aio stubs, one upstream stream per request.

A stream per request is what makes cancelling one of them possible (Triton has no per-request cancel on a shared
stream) and what gives each its own trace parent. Stops share one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from sidecar.call import Metadata
from sidecar.errors import StreamBrokenError
from sidecar.tls import Material
from sidecar.triton import wire
from sidecar.triton.errors import REAL_STATUS, EndedEarlyError, raise_if_error, translated_errors
from sidecar.triton.stops import StopLine

SERVICE = "inference.GRPCInferenceService"
Version = tuple[int, int]
SAFE_ENDS: Version = (2, 68)
STOP_TRIES = 3  # of a stop whose stream ended before it was taken
RETIRED_S = 600.0  # what runs on a channel with older certificates has so long to end
REFUSAL_S = 0.1  # at the second try its request waits so long for the refusal of the stream itself, then longer

# Messages may be as large as the server's. A peer that hangs is noticed by the prober, long before keepalive would.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 300_000),  # the server's least allowed interval between pings without data
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # a restarted engine is found within a second
    ("grpc.min_reconnect_backoff_ms", 1_000),  # how long one try may take: a busy host needs more than 100 ms (seen)
    ("grpc.initial_reconnect_backoff_ms", 100),
)


class EngineClient:
    """An open channel to one endpoint. Close it when no stream is left.

    `own_metadata` goes with what the sidecar asks for itself, e.g. the keys of Triton's restricted protocols. A
    caller's calls carry the caller's metadata instead: nobody gains a right by going through the sidecar.
    """

    def __init__(self, target: str, own_metadata: Metadata = (), tls: Material | None = None) -> None:
        """Without `tls` nothing is encrypted."""
        self.target = target
        self.own_metadata = tuple(own_metadata)
        self.version: Version | None = None  # of its Triton, as `look_up_version` found it
        self._tls = tls
        self._connect()
        self._retired: set[asyncio.Task[None]] = set()  # channels with older certificates, until nothing runs there
        self._stops: StopLine | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stops is not None:
            await self._stops.close()
        for each in self._retired:
            each.cancel()
        await self._open_channel.close()

    def _connect(self) -> None:
        if self._tls is None:
            self._open_channel = grpc.aio.insecure_channel(self.target, options=CHANNEL_OPTIONS)
        else:
            self._tls_version = self._tls.refresh()
            options = (*CHANNEL_OPTIONS, *self._tls.channel_options())
            self._open_channel = grpc.aio.secure_channel(self.target, self._tls.channel_credentials(), options=options)
        self._open_stream = self._open_channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )

    @property
    def _channel(self) -> grpc.aio.Channel:
        """The channel for what begins now. What runs ends on the channel where it began."""
        if self._tls is not None and self._tls.refresh() != self._tls_version:
            old = self._open_channel
            self._connect()
            retired = asyncio.get_running_loop().create_task(old.close(RETIRED_S), name=f"retire {self.target}")
            self._retired.add(retired)
            retired.add_done_callback(self._retired.discard)
        return self._open_channel

    def _stream(self, *, metadata: Metadata, timeout: float | None = None) -> grpc.aio.StreamStreamCall[Any, Any]:
        _ = self._channel  # with certificates that have changed it is another one
        return self._open_stream(metadata=metadata, timeout=timeout)

    @property
    def ends_streams_safely(self) -> bool:
        """True if a stream may be opened with `triton_grpc_error`.

        Before 2.68 the server reads freed memory when it ends such a stream (server#8708): 2.51 died of the second to
        fourth error (measured), with everything that it ran.
        """
        return self.version is not None and self.version >= SAFE_ENDS

    async def look_up_version(self, timeout_s: float) -> None:
        """`version` is known, if Triton tells it."""
        self.version = None
        ask = self.raw_unary(f"/{SERVICE}/ServerMetadata")
        try:
            raw = await ask(b"", timeout=timeout_s, metadata=self.own_metadata)
            major, minor, *_ = service_pb2.ServerMetadataResponse.FromString(raw).version.split(".")
            self.version = int(major), int(minor)
        except (grpc.aio.AioRpcError, DecodeError, ValueError):  # e.g. the protocol "metadata" is restricted
            pass

    def open(self, metadata: Metadata = (), *, own: bool = False) -> grpc.aio.StreamStreamCall[Any, Any]:
        """A new stream, with `own_metadata` too if no caller stands behind it.

        An error ends it with its status, where the server survives that.

        Cancel it to abandon the request; the engine notices at its next check period.
        """
        rest = (each for each in metadata if each[0] != REAL_STATUS)  # a caller's stream is not this one
        status = ((REAL_STATUS, "true"),) if self.ends_streams_safely else ()  # else errors have a text alone
        return self._stream(metadata=(*(self.own_metadata if own else ()), *rest, *status))

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
        for attempt in range(1, STOP_TRIES + 1):
            if self._stops is None or not self._stops.usable:
                self._stops = StopLine(self._stream(metadata=self.own_metadata))
            try:
                await self._stops.stop(stop_request(model, request_id), timeout_s, REFUSAL_S * (attempt - 1))
                return
            except EndedEarlyError:
                if attempt == STOP_TRIES:
                    raise

    async def generate(self, model: str, ids: Sequence[int], output_tokens: int, timeout_s: float) -> tuple[int, ...]:
        """Prompt and output ids of one short generation, as the engine returns them. Errors as for `stop`."""
        request = token_request(model, ids, output_tokens, "check")
        wire.add_tensor(request, "exclude_input_in_output", "BOOL", (False,), (1, 1))
        found = await responses(self._stream(timeout=timeout_s, metadata=self.own_metadata), request)
        return tuple(token for each in found for token in wire.output_values(each, "output_ids") or ())


async def send(call: Any, request: Any) -> None:
    """`request` is the only one of a fresh stream. Call it, and read on, inside `translated_errors`."""
    request.parameters[wire.EMPTY_FINAL].bool_param = True
    await call.write(request)
    await call.done_writing()


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
