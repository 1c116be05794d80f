"""An engine that does as it is told, also wrong: a process with Triton's service, and a page of gauges.

    python -m dev.front_engine GRPC_PORT HTTP_PORT

It gives a token every TOKEN_S to each request. `/front/Mode` with the name of a mode makes it misbehave from then on.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from aiohttp import web
from tritonclient.grpc import model_config_pb2, service_pb2

from sidecar.triton import wire
from sidecar.triton.client import SERVICE

SLOTS = 8
TOKEN_S = 0.02  # as an 8B gives them
MODE = "/front/Mode"
MODES = {
    "": "as it should",
    "errors": "each request is answered by an error",
    "unknown_ids": "each response names a request that nobody sent",
    "final_first": "the final response comes before the tokens",
    "never_final": "tokens come, and no final response",
    "dies_in_stop": "the process ends when it is told to stop a request",
    "scrape_dead": "nobody answers on the page of gauges",
    "scrape_slow": "the page of gauges takes half a minute",
    "scrape_lies": "the page of gauges holds no UTF-8, and numbers that are none",
}
_LIES = b'nv_trt_llm_request_metrics{request_type="active",model="tensorrt_llm"} 1e999\n\xff\xfe\n'
_GAUGES = 'nv_trt_llm_request_metrics{{request_type="{}",model="tensorrt_llm",version="1"}} {}\n'


class FrontEngine:
    """The engine. `mode` says how it is now."""

    def __init__(self) -> None:
        self.mode = ""
        self._stopped: set[str] = set()
        self._running = 0

    async def stream(self, requests: AsyncIterator[Any], context: Any) -> None:
        """ModelStreamInfer: one request, or several stops."""
        async for request in requests:
            names = {each.name for each in request.inputs}
            if "stop" in names:
                if self.mode == "dies_in_stop":
                    os._exit(9)
                self._stopped.add(request.id)
                await context.write(_answer(request.id, final=True))
            else:
                await self._generate(request, context)

    async def _generate(self, request: Any, context: Any) -> None:
        if self.mode == "errors":
            failed = wire.StreamResponse(error_message="the engine fails, as it was told")
            failed.infer_response.id = request.id
            failed.infer_response.parameters[wire.FINAL].bool_param = True
            await context.write(failed)
            return
        asked = next(each for each in zip(request.inputs, request.raw_input_contents, strict=False)
                     if each[0].name == "request_output_len")  # fmt: skip
        tokens, shown = int.from_bytes(asked[1], "little"), request.id
        if self.mode == "unknown_ids":
            shown = "nobody"
        if self.mode == "final_first":
            await context.write(_answer(shown, final=True))
        self._running += 1
        try:
            for number in range(tokens):
                await asyncio.sleep(TOKEN_S)
                last = number + 1 == tokens or request.id in self._stopped
                await context.write(_answer(shown, 7, final=last and self.mode != "never_final"))
                if last:
                    break
            if self.mode == "never_final":
                await asyncio.sleep(3600)
        finally:
            self._running -= 1
            self._stopped.discard(request.id)

    async def gauges(self, _request: web.Request) -> web.Response:
        """The page of gauges."""
        if self.mode == "scrape_slow":
            await asyncio.sleep(30)
        if self.mode == "scrape_dead":
            raise web.HTTPServiceUnavailable
        if self.mode == "scrape_lies":
            return web.Response(body=_LIES)
        return web.Response(text=_GAUGES.format("active", self._running) + _GAUGES.format("max", SLOTS))

    async def set_mode(self, raw: bytes, _context: Any) -> bytes:
        """Be like this from now on."""
        self.mode = raw.decode()
        return b""


def _answer(request_id: str, *ids: int, final: bool) -> Any:
    answer = wire.StreamResponse()
    answer.infer_response.id = request_id
    answer.infer_response.model_name = "tensorrt_llm"
    answer.infer_response.parameters[wire.FINAL].bool_param = final
    if ids:
        tensor = answer.infer_response.outputs.add(name="output_ids", datatype="INT32")
        tensor.shape.extend((1, 1, len(ids)))
        answer.infer_response.raw_output_contents.append(wire.pack("INT32", ids))
    return answer


async def _config(_raw: bytes, _context: Any) -> Any:
    config = model_config_pb2.ModelConfig(name="tensorrt_llm", max_batch_size=SLOTS)
    config.model_transaction_policy.decoupled = True
    for name, kind, optional in (
        ("input_ids", "TYPE_INT32", False),
        ("input_lengths", "TYPE_INT32", False),
        ("request_output_len", "TYPE_INT32", False),
        ("streaming", "TYPE_BOOL", True),
        ("stop", "TYPE_BOOL", True),
    ):
        each = config.input.add(name=name, data_type=model_config_pb2.DataType.Value(kind), optional=optional)
        each.dims.append(-1)
    config.output.add(name="output_ids", data_type=model_config_pb2.TYPE_INT32).dims.extend((-1, -1))
    return service_pb2.ModelConfigResponse(config=config)


def handlers(engine: FrontEngine) -> tuple[grpc.GenericRpcHandler, ...]:
    """What a gRPC server serves for this engine."""

    def unary(answer: Any) -> Any:
        async def handler(raw: bytes, context: Any) -> bytes:
            return bytes((await answer(raw, context)).SerializeToString())

        return grpc.unary_unary_rpc_method_handler(handler)

    def fixed(message: Any) -> Any:
        async def answer(_raw: bytes, _context: Any) -> Any:
            return message

        return unary(answer)

    methods = {
        "ModelConfig": unary(_config),
        "ModelMetadata": fixed(service_pb2.ModelMetadataResponse(name="tensorrt_llm", versions=["1"])),
        "ServerMetadata": fixed(service_pb2.ServerMetadataResponse(version="2.71.0")),
        "RepositoryIndex": fixed(service_pb2.RepositoryIndexResponse()),
        "ServerLive": fixed(service_pb2.ServerLiveResponse(live=True)),
        "ServerReady": fixed(service_pb2.ServerReadyResponse(ready=True)),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
            engine.stream, wire.InferRequest.FromString, wire.StreamResponse.SerializeToString
        ),
    }
    own: dict[str, Any] = {"Mode": grpc.unary_unary_rpc_method_handler(engine.set_mode)}
    return (
        grpc.method_handlers_generic_handler(SERVICE, methods),
        grpc.method_handlers_generic_handler(MODE.split("/")[1], own),
    )


async def main(grpc_port: int, http_port: int) -> None:
    """Serve until killed."""
    engine = FrontEngine()
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)))
    server.add_generic_rpc_handlers(handlers(engine))
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    app = web.Application()
    app.add_routes([web.get("/metrics", engine.gauges)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", http_port).start()
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:3])))
