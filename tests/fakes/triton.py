"""A Triton that does what a test says: a real gRPC server whose requests the test answers by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2, service_pb2

from sidecar.triton import wire
from sidecar.triton.client import SERVICE
from sidecar.triton.errors import REAL_STATUS

_INPUTS = {
    "tensorrt_llm": (
        ("input_ids", "TYPE_INT32", [-1], False),
        ("input_lengths", "TYPE_INT32", [1], False),
        ("request_output_len", "TYPE_INT32", [1], False),
        ("end_id", "TYPE_INT32", [1], True),
        ("seed", "TYPE_UINT64", [1], True),
        ("min_tokens", "TYPE_INT32", [1], True),
        ("stop_words_list", "TYPE_INT32", [2, -1], True),
        ("streaming", "TYPE_BOOL", [1], True),
        ("exclude_input_in_output", "TYPE_BOOL", [1], True),
        ("repetition_penalty", "TYPE_FP32", [1], True),
        ("return_perf_metrics", "TYPE_BOOL", [1], True),
        ("stop", "TYPE_BOOL", [1], True),
        ("num_return_sequences", "TYPE_INT32", [1], True),
    ),
    "ensemble": (
        ("text_input", "TYPE_STRING", [1], False),
        ("max_tokens", "TYPE_INT32", [1], False),
        ("stream", "TYPE_BOOL", [1], True),
    ),
}
_OUTPUTS = {"tensorrt_llm": ("output_ids", "sequence_length"), "ensemble": ("text_output",)}


class FakeRequest:
    """One request that reached the engine; the test answers it."""

    def __init__(self, message: Any, metadata: dict[str, str]) -> None:
        self.message = message
        self.metadata = metadata
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.gone = asyncio.Event()

    @property
    def id(self) -> str:
        return str(self.message.id)

    def input(self, name: str) -> Any:
        return wire.input_values(self.message, name)

    def tokens(self, *ids: int, final: bool = False) -> None:
        """Answer with these ids, in one response."""
        answer = self._answer(final)
        tensor = answer.infer_response.outputs.add(name="output_ids", datatype="INT32")
        tensor.shape.extend((1, 1, len(ids)))
        answer.infer_response.raw_output_contents.append(wire.pack("INT32", ids))
        self.answers.put_nowait(answer)

    def text(self, text: str, final: bool = False) -> None:
        """Answer with this text, in one response."""
        answer = self._answer(final)
        answer.infer_response.outputs.add(name="text_output", datatype="BYTES").shape.extend((1,))
        answer.infer_response.raw_output_contents.append(wire.pack("BYTES", [text.encode()]))
        self.answers.put_nowait(answer)

    def end(self) -> None:
        """Answer with a final response without data."""
        self.answers.put_nowait(self._answer(True))

    def error(self, message: str, code: grpc.StatusCode | None = None) -> None:
        """Answer with an error: as our models say its status, or as a text alone."""
        said = message if code is None else f"{message} [{code.name}]"
        told = code is not None and self.metadata.get(REAL_STATUS) == "true"
        self.answers.put_nowait((code, said) if told else wire.StreamResponse(error_message=said))

    def break_stream(self) -> None:
        """End the stream without a final response."""
        self.answers.put_nowait(None)

    def _answer(self, final: bool) -> Any:
        answer = wire.StreamResponse()
        answer.infer_response.model_name = self.message.model_name
        answer.infer_response.model_version = "1"
        answer.infer_response.id = self.message.id
        answer.infer_response.parameters[wire.FINAL].bool_param = final
        return answer


class FakeTriton:
    """Serves `ModelStreamInfer` by hand, and a few passed-through methods by rote."""

    def __init__(
        self,
        engine_model: str = "tensorrt_llm",
        text_model: str = "ensemble",
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.engine_model, self.text_model = engine_model, text_model
        self._arrived: asyncio.Queue[FakeRequest] = asyncio.Queue()
        self.running: dict[str, FakeRequest] = {}
        self.stopped: list[str] = []
        self.stop_parameters: set[str] = set()  # of all stops so far
        self.confirms_stops = True
        self.answers_stops = True
        self.mute_stops: set[str] = set()  # ids whose stops get no answer
        self.refused_stops: set[str] = set()  # ids whose stops get an error
        self.streams = 0  # opened so far
        self.probes = 0  # stops of ids that nobody has
        self.metadata_of: dict[str, dict[str, str]] = {}
        self.key: tuple[str, str] | None = None  # ModelConfig and streams are restricted to whoever sends it
        self.version = "2.71.0"
        self.configs = 0  # ModelConfig calls so far
        self.config_hangs = False
        self.parameters: dict[str, str] = {}  # of both models' configs
        self.sequences_max = 8
        self.extra_inputs: list[str] = []  # optional ones of both models, as after a reload
        self.living = True  # else ServerLive gets no answer
        self.slow_begun = asyncio.Event()  # a ModelInfer of model "slow" has come
        self.slow_cancelled = asyncio.Event()  # and was cancelled; nothing else ends it
        self.slow_deadline_s: float | None = None
        self._server = grpc.aio.server()
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.target = f"127.0.0.1:{port}"
        unary = {
            "ModelConfig": self._model_config,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "ServerLive": self._server_live,
            "ServerReady": self._ready,
            "ModelReady": self._ready,
            "RepositoryModelLoad": self._model_load,
        }
        handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(each) for name, each in unary.items()}
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=wire.InferRequest.FromString,
            response_serializer=wire.StreamResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def __aenter__(self) -> FakeTriton:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def kill(self) -> None:
        """Gone at once, with all its streams."""
        await self._server.stop(None)

    async def next(self) -> FakeRequest:
        """The next request that reaches the engine and is no stop."""
        async with asyncio.timeout(5):
            return await self._arrived.get()

    async def next_by_prompt(self, count: int) -> dict[tuple[int, ...], FakeRequest]:
        """So many requests by their prompt ids: each comes on a stream of its own, so in any order."""
        found = [await self.next() for _ in range(count)]
        return {each.input("input_ids"): each for each in found}

    @property
    def idle(self) -> bool:
        """True if no request waits to be looked at by the test."""
        return self._arrived.empty()

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> None:
        self.streams += 1
        metadata = dict(context.invocation_metadata() or ())
        self.metadata_of["ModelStreamInfer"] = metadata
        await self._check_key(context)
        async for message in requests:
            if wire.scalar(message, "stop", False):
                await self._stop(message, context)
                continue
            if message.model_name == "faulty" and metadata.get("triton_grpc_error") == "true":
                await context.abort(grpc.StatusCode.NOT_FOUND, "faulty failed")
            if message.model_name == "faulty":
                answer = FakeRequest(message, {})._answer(True)
                answer.error_message = "faulty failed"
                await context.write(answer)
                continue
            if message.model_name == "nobody":
                await context.write(wire.StreamResponse(error_message="Request for unknown model"))
                continue
            if message.model_name == "slow":
                continue  # it never answers
            if message.model_name not in (self.engine_model, self.text_model):
                await context.write(FakeRequest(message, {})._answer(True))
                continue
            request = FakeRequest(message, dict(context.invocation_metadata() or ()))
            self.running[request.id] = request
            self._arrived.put_nowait(request)
            try:
                while (answer := await request.answers.get()) is not None:
                    if isinstance(answer, tuple):
                        await context.abort(*answer)
                    await context.write(answer)
                    if answer.error_message or answer.infer_response.parameters[wire.FINAL].bool_param:
                        break
            finally:
                request.gone.set()
                self.running.pop(request.id, None)

    async def _stop(self, message: Any, context: Any) -> None:
        self.stop_parameters.update(message.parameters)
        if message.id in self.running:
            self.stopped.append(message.id)
            if self.confirms_stops:
                self.running[message.id].end()
        else:
            self.probes += 1
        answer = FakeRequest(message, {})._answer(True)
        if message.id in self.refused_stops:
            answer.error_message = "Request for unknown model: 'x' is not found"
        if not message.id:
            answer.error_message = "invalid stop: it needs the id of the request to stop"
        if self.answers_stops and message.id not in self.mute_stops:
            await context.write(answer)

    async def _check_key(self, context: Any) -> None:
        if self.key is not None and self.key not in tuple(context.invocation_metadata() or ()):
            text = f"This protocol is restricted, expecting header '{self.key[0]}'"
            await context.abort(grpc.StatusCode.UNAVAILABLE, text)

    async def _model_config(self, raw: bytes, context: Any) -> bytes:
        self.configs += 1
        await self._check_key(context)
        while self.config_hangs:  # noqa: ASYNC110 - ends when the caller's deadline cancels it
            await asyncio.sleep(0.01)
        try:
            name = service_pb2.ModelConfigRequest.FromString(raw).name
        except DecodeError:
            await context.abort(grpc.StatusCode.INTERNAL, "Unable to parse request")
        if name not in (self.engine_model, self.text_model):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        kind = "ensemble" if name == self.text_model else "tensorrt_llm"
        answer = service_pb2.ModelConfigResponse()
        answer.config.name = name
        answer.config.max_batch_size = self.sequences_max
        for key, value in self.parameters.items():
            answer.config.parameters[key].string_value = value
        for input_name, datatype, dims, optional in _INPUTS[kind]:
            answer.config.input.add(
                name=input_name, data_type=model_config_pb2.DataType.Value(datatype), dims=dims, optional=optional
            )
        for input_name in self.extra_inputs:
            answer.config.input.add(name=input_name, data_type=model_config_pb2.TYPE_INT32, dims=[1], optional=True)
        for output_name in _OUTPUTS[kind]:
            kind_of = model_config_pb2.TYPE_STRING if output_name == "text_output" else model_config_pb2.TYPE_INT32
            answer.config.output.add(name=output_name, data_type=kind_of, dims=[-1])
        return bytes(answer.SerializeToString())

    async def _model_metadata(self, raw: bytes, context: Any) -> bytes:
        try:
            name = service_pb2.ModelMetadataRequest.FromString(raw).name
        except DecodeError:
            await context.abort(grpc.StatusCode.INTERNAL, "Unable to parse request")
        return bytes(service_pb2.ModelMetadataResponse(name=name, versions=["1"]).SerializeToString())

    async def _server_metadata(self, _raw: bytes, context: Any) -> bytes:
        self.metadata_of["ServerMetadata"] = dict(context.invocation_metadata() or ())
        await context.send_initial_metadata((("from-triton", "initial"),))
        context.set_trailing_metadata((("from-triton-too", "trailing"),))
        return bytes(service_pb2.ServerMetadataResponse(name="fake", version=self.version).SerializeToString())

    async def _server_live(self, _raw: bytes, _context: Any) -> bytes:
        while not self.living:  # noqa: ASYNC110 - ends when the caller's deadline cancels it
            await asyncio.sleep(0.01)
        return bytes(service_pb2.ServerLiveResponse(live=True).SerializeToString())

    async def _ready(self, _raw: bytes, _context: Any) -> bytes:
        """ServerReady and ModelReady alike."""
        return bytes(service_pb2.ServerReadyResponse(ready=True).SerializeToString())

    async def _model_load(self, _raw: bytes, _context: Any) -> bytes:
        return b""

    async def _model_infer(self, raw: bytes, context: Any) -> bytes:
        request = wire.InferRequest.FromString(raw)
        if request.model_name == "slow":
            self.slow_deadline_s = context.time_remaining()
            self.slow_begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.slow_cancelled.set()
        if request.model_name == "unknown":
            await context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'unknown' is not found")
        return bytes(wire.InferResponse(model_name=request.model_name, id=request.id).SerializeToString())
