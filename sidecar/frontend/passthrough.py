"""Every RPC that is not scheduled reaches an engine's Triton as it came, and its answer comes back as it was.

Metadata passes both ways (restricted protocols and trace parents depend on it), and so do status, trailers, deadlines
and cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from sidecar.errors import EngineError
from sidecar.frontend.outbox import Outbox
from sidecar.frontend.readiness import Readiness
from sidecar.frontend.rpc import forwardable, refuse
from sidecar.frontend.schemas import ModelSchema, Schemas
from sidecar.triton import wire
from sidecar.triton.client import SERVICE, EngineClient
from sidecar.triton.errors import REAL_STATUS, STATUS_LOST, code_of

PASSED_THROUGH = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
    *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    *("TraceSetting", "LogSettings"),
)
UNREADABLE = (grpc.StatusCode.INTERNAL, "Unable to parse request")  # what Triton, a C++ gRPC server, answers
_CHANGES_MODELS = ("RepositoryModelLoad", "RepositoryModelUnload")
FETCH_TIMEOUT_S = 1.0  # ModelConfig and ServerLive take a millisecond or two; an engine that takes longer hangs
LOOK_AGAIN_S = 1.0  # an engine that did not answer is asked again no sooner


class Passthrough:
    """Relays calls to the first engine that is up, or to the first one when none is.

    Of a model that is scheduled, by `serving`, only the engines that serve it are asked.
    """

    def __init__(
        self,
        engines: Mapping[str, EngineClient],
        serving: Mapping[str, Sequence[str]] | None = None,
        readiness: Readiness | None = None,
        refused: Mapping[str, str] | None = None,
    ) -> None:
        """`refused` holds the models that must not pass by the scheduler, and what callers are told. It may change."""
        self._engines = engines
        self._serving = serving or {}
        self.readiness = readiness or Readiness()  # kept by whoever probes the engines
        self.schemas = Schemas(self.schema, self.serves)
        self.refused = {} if refused is None else refused
        self.running = 0  # unary calls that wait for their answer
        self._looks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._hung_until_s: dict[str, float] = {}

    @property
    def up(self) -> set[str]:
        """The engines that are up."""
        return self.readiness.up

    def scheduled(self, model: str) -> bool:
        """True if the scheduler dispatches requests of this model."""
        return model in self._serving

    def serves(self, model: str) -> bool:
        """True if an engine is up that serves this model."""
        return any(name in self.up for name in self._names(model))

    def engine_is(self, name: str, up: bool) -> None:
        """This engine is up, or down, from now on. Its models may differ from what they were."""
        self.readiness.engine_is(name, up)
        self.schemas.doubt()

    async def schema(self, model: str) -> ModelSchema:
        """The inputs and outputs of a model, as an engine tells them now. Raises EngineError if none does."""
        engine = self._engines[self._name(model)]
        request = service_pb2.ModelConfigRequest(name=model).SerializeToString()
        ask = engine.raw_unary(f"/{SERVICE}/ModelConfig")
        try:
            raw = await ask(request, timeout=FETCH_TIMEOUT_S, metadata=engine.own_metadata)
            config = service_pb2.ModelConfigResponse.FromString(raw).config
            return ModelSchema.of(config, await self._versions(engine, model))
        except grpc.aio.AioRpcError as error:
            raise EngineError(error.details() or error.code().name, error.code()) from None
        except (DecodeError, ValueError) as error:  # e.g. a datatype that we do not know
            raise EngineError(f"the ModelConfig cannot be read: {error}", grpc.StatusCode.INTERNAL) from None

    async def _versions(self, engine: EngineClient, model: str) -> list[str]:
        """The versions that Triton serves; none if it does not tell, which may be restricted apart."""
        request = service_pb2.ModelMetadataRequest(name=model).SerializeToString()
        ask = engine.raw_unary(f"/{SERVICE}/ModelMetadata")
        try:
            raw = await ask(request, timeout=FETCH_TIMEOUT_S, metadata=engine.own_metadata)
            return [each for each in service_pb2.ModelMetadataResponse.FromString(raw).versions if each.isdecimal()]
        except (grpc.aio.AioRpcError, DecodeError):
            return []

    async def unary(self, method: str, raw: bytes, context: Any, model: str = "") -> bytes:
        """The answer of Triton, or its status; of an engine that serves `model`, if it is about one."""
        if self.readiness.draining and method == "ModelInfer":
            await refuse(context, grpc.StatusCode.UNAVAILABLE, "this sidecar is shutting down")
        try:
            engine = await self.living(model)
        except EngineError as error:
            await refuse(context, error.code, str(error))
        call = engine.raw_unary(f"/{SERVICE}/{method}")(
            raw, metadata=forwardable(context.invocation_metadata()), timeout=context.time_remaining()
        )
        self.running += 1
        try:
            await context.send_initial_metadata(forwardable(await call.initial_metadata()))
            answer: bytes = await call
            context.set_trailing_metadata(forwardable(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            await refuse(context, error.code(), error.details() or "", forwardable(error.trailing_metadata()))
        finally:
            self.running -= 1
            call.cancel()  # the caller may be gone: Triton need not go on. Does nothing to a call that has ended
        if method in _CHANGES_MODELS:
            self.schemas.doubt()
        return answer

    async def stream(self, context: Any, outbox: Outbox) -> StreamPassthrough:
        """One upstream stream for the requests of one caller that are not scheduled. Raises EngineError.

        With the caller's `triton_grpc_error` the first error of a model ends it, with Triton's status; one of a Triton
        that does not survive that is ended here, with INTERNAL, for the text has no status.
        """
        engine, given = await self.living(), context.invocation_metadata() or ()
        metadata, ends_here = forwardable(given), False
        if (REAL_STATUS, "true") in given:
            ends_here = not engine.ends_streams_safely
            metadata = metadata if ends_here else (*metadata, (REAL_STATUS, "true"))
        call = engine.raw_stream(f"/{SERVICE}/ModelStreamInfer")(metadata=metadata, timeout=context.time_remaining())
        return StreamPassthrough(call, outbox, ends_with_error=ends_here)

    def _names(self, model: str) -> Sequence[str]:
        return self._serving.get(model) or tuple(self._engines)

    def _name(self, model: str) -> str:
        names = self._names(model)
        return next((name for name in names if name in self.up), names[0])

    async def living(self, model: str = "") -> EngineClient:
        """Return where a call that is not scheduled goes. Raises EngineError if that engine hangs.

        An engine may be down for us, because its model does not answer, while its Triton serves all others: so whoever
        is down is asked whether it lives, once for all who wait. A dead one needs no such look: gRPC says so at once.
        """
        name = self._name(model)
        engine = self._engines[name]
        if name in self.up:
            return engine
        async with self._looks[name]:
            if time.monotonic() >= self._hung_until_s.get(name, -inf):
                try:
                    ask = engine.raw_unary(f"/{SERVICE}/ServerLive")
                    await ask(b"", timeout=FETCH_TIMEOUT_S, metadata=engine.own_metadata)
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                        self._hung_until_s[name] = time.monotonic() + LOOK_AGAIN_S
            if time.monotonic() < self._hung_until_s.get(name, -inf):
                raise EngineError(f"engine {name} does not answer", grpc.StatusCode.UNAVAILABLE)
        return engine


@contextlib.contextmanager
def _unless_over() -> Iterator[None]:
    """What grpc.aio raises for a write to a stream that has ended is no error of the writer."""
    try:
        yield
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass
    except asyncio.CancelledError:  # grpc.aio: also when the stream was cancelled
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise


class StreamPassthrough:
    """A stream to Triton whose responses go to the outbox as they are."""

    def __init__(self, call: Any, outbox: Outbox, *, ends_with_error: bool = False) -> None:
        self._call = call
        self._outbox = outbox
        self._ends_with_error = ends_with_error

    async def write(self, request: bytes) -> None:
        """Send one request; an error of the stream shows in `pump`."""
        with _unless_over():
            await self._call.write(request)

    async def half_close(self) -> None:
        """No more requests follow."""
        with _unless_over():
            await self._call.done_writing()

    async def pump(self) -> EngineError | None:
        """Deliver until the stream ends; the error it ended with, if any."""
        try:
            while (raw := await self._call.read()) is not grpc.aio.EOF:
                if self._ends_with_error and (text := _error_of_a_model(raw)):
                    return EngineError(text, code_of(text))
                self._outbox.put(raw)
                await self._outbox.room()  # a slow reader slows Triton's stream, as it would without us
        except grpc.aio.AioRpcError as error:
            if error.details() == STATUS_LOST:
                return EngineError("the stream to the engine broke", grpc.StatusCode.UNAVAILABLE)
            return EngineError(error.details() or "", error.code())
        finally:
            self._call.cancel()
        return None


def _error_of_a_model(raw: bytes) -> str:
    """The text of an error that ends a stream in Triton: not one of a request that it could not take.

    Only the first has the parameter that says whether more follows.
    """
    answer = wire.StreamResponse.FromString(raw)
    return str(answer.error_message) if wire.FINAL in answer.infer_response.parameters else ""
