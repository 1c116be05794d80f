"""Every RPC that is not scheduled reaches an engine's Triton as it came, and its answer comes back as it was.

Metadata passes both ways (restricted protocols and trace parents depend on it), and so do status and trailers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from sidecar.edge.engine_client import SERVICE, EngineClient, Metadata
from sidecar.edge.errors import EngineError
from sidecar.edge.outbox import Outbox
from sidecar.edge.schema import ModelSchema

PASSED_THROUGH = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
    *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    *("TraceSetting", "LogSettings"),
)
_HOP_BY_HOP = ("grpc-", ":")
_OURS = {"user-agent", "te", "content-type", "triton_grpc_error"}  # the last acts on the caller's stream, not on ours
SCHEMA_TIMEOUT_S = 5.0


def forwardable(metadata: Any) -> Metadata:
    """The metadata that belongs to the caller and the server, not to one hop between them."""
    return tuple((key, value) for key, value in metadata or () if key not in _OURS and not key.startswith(_HOP_BY_HOP))


class Passthrough:
    """Relays calls to the first engine that is up, or to the first one when none is.

    Of a model that is scheduled, by `serving`, only the engines that serve it are asked.
    """

    def __init__(self, engines: Mapping[str, EngineClient], serving: Mapping[str, Sequence[str]] | None = None) -> None:
        self._engines = engines
        self._serving = serving or {}
        self._schemas: dict[str, ModelSchema] = {}
        self.up: set[str] = set()  # kept by whoever probes the engines

    def engine(self, model: str = "") -> EngineClient:
        """Where a call that is not scheduled goes, or one about `model`."""
        names = self._serving.get(model) or tuple(self._engines)
        return self._engines[next((name for name in names if name in self.up), names[0])]

    def engine_changed(self) -> None:
        """An engine came or went: its models may differ now."""
        self._schemas.clear()

    async def schema(self, model: str) -> ModelSchema:
        """The inputs and outputs of a model. Raises EngineError if no engine tells."""
        if (known := self._schemas.get(model)) is not None:
            return known
        request = service_pb2.ModelConfigRequest(name=model).SerializeToString()
        try:
            raw = await self.engine(model).raw_unary(f"/{SERVICE}/ModelConfig")(request, timeout=SCHEMA_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise EngineError(error.details() or error.code().name, error.code()) from None
        schema = self._schemas[model] = ModelSchema.of(service_pb2.ModelConfigResponse.FromString(raw).config)
        return schema

    async def unary(self, method: str, raw: bytes, context: Any, model: str = "") -> bytes:
        """The answer of Triton, or its status; of an engine that serves `model`, if it is about one."""
        call = self.engine(model).raw_unary(f"/{SERVICE}/{method}")(
            raw, metadata=forwardable(context.invocation_metadata()), timeout=context.time_remaining()
        )
        try:
            await context.send_initial_metadata(forwardable(await call.initial_metadata()))
            answer: bytes = await call
            context.set_trailing_metadata(forwardable(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", forwardable(error.trailing_metadata()))
            raise  # abort has raised already
        return answer

    def stream(self, context: Any, outbox: Outbox) -> StreamPassthrough:
        """One upstream stream for the requests of one caller that are not scheduled."""
        method = self.engine().raw_stream(f"/{SERVICE}/ModelStreamInfer")
        call = method(metadata=forwardable(context.invocation_metadata()), timeout=context.time_remaining())
        return StreamPassthrough(call, outbox)


class StreamPassthrough:
    """A stream to Triton whose responses go to the outbox as they are."""

    def __init__(self, call: Any, outbox: Outbox) -> None:
        self._call = call
        self._outbox = outbox

    async def write(self, request: Any) -> None:
        """Send one request; an error of the stream shows in `pump`."""
        if not self._call.done():
            await self._call.write(request.SerializeToString())

    async def half_close(self) -> None:
        """No more requests follow."""
        await self._call.done_writing()

    async def pump(self) -> EngineError | None:
        """Deliver until the stream ends; the error it ended with, if any."""
        try:
            while (raw := await self._call.read()) is not grpc.aio.EOF:
                self._outbox.put(raw)
                await self._outbox.room()  # a slow reader slows Triton's stream, as it would without us
        except grpc.aio.AioRpcError as error:
            return EngineError(error.details() or "", error.code())
        finally:
            self._call.cancel()
        return None
