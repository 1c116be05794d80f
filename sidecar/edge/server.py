"""The gRPC server that callers see: Triton's service and the standard health check, over raw handlers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2

from sidecar.core.errors import SettingsError
from sidecar.edge import wire
from sidecar.edge.engine_client import SERVICE
from sidecar.edge.online import Online
from sidecar.edge.passthrough import PASSED_THROUGH, Passthrough
from sidecar.edge.routing import Models
from sidecar.edge.tracing import CURRENT, Tracing

HEALTH = "grpc.health.v1.Health"
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # keepalive callers must not get GOAWAY
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),  # a second sidecar on the same port is an error, not a lottery
)
ABOUT_A_MODEL = {
    "ModelReady": service_pb2.ModelReadyRequest,
    "ModelMetadata": service_pb2.ModelMetadataRequest,
    "ModelConfig": service_pb2.ModelConfigRequest,
    "ModelStatistics": service_pb2.ModelStatisticsRequest,
}
UnaryHandler = Callable[[bytes, Any], Awaitable[Any]]


class RpcObserver(Protocol):
    """Who counts inbound calls."""

    def served(self, method: str, code: str, seconds: float) -> None:
        """A call of this method has ended with this status."""


def build_server(
    address: str, online: Online, passthrough: Passthrough, observer: RpcObserver, tracing: Tracing | None = None
) -> tuple[grpc.aio.Server, int]:
    """A server bound to `address` (host:port), not started, and its port. Raises SettingsError if it is taken."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    methods = {name: _passed_through(passthrough, name) for name in PASSED_THROUGH}
    for name, message in ABOUT_A_MODEL.items():
        methods[name] = _about_a_model(passthrough, name, message, online.models)
    methods["ModelInfer"] = online.model_infer
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            _observed(handler, f"{SERVICE}/{name}", observer, tracing), response_serializer=_serialized
        )
        for name, handler in methods.items()
    }
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        _observed(online.model_stream_infer, f"{SERVICE}/ModelStreamInfer", observer, tracing),
        request_deserializer=wire.InferRequest.FromString,  # responses are serialised already
    )
    check = _observed(_health(passthrough), f"{HEALTH}/Check", observer)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, handlers),
            grpc.method_handlers_generic_handler(
                HEALTH, {"Check": grpc.unary_unary_rpc_method_handler(check, response_serializer=_serialized)}
            ),
        )
    )
    try:
        return server, server.add_insecure_port(address)
    except RuntimeError as error:
        raise SettingsError(f"listen: cannot bind {address}: {error}") from None


def _serialized(message: Any) -> bytes:
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())


def _passed_through(passthrough: Passthrough, name: str) -> UnaryHandler:
    async def handler(raw: bytes, context: Any) -> bytes:
        return await passthrough.unary(name, raw, context)

    return handler


def _about_a_model(passthrough: Passthrough, method: str, message: Any, models: Models) -> UnaryHandler:
    """Asks an engine that serves the model, or the one that an alias stands for."""

    async def handler(raw: bytes, context: Any) -> Any:
        try:
            request = message.FromString(raw)
        except DecodeError:
            return await passthrough.unary(method, raw, context)  # for Triton to refuse
        request.name = models.named(request.name)
        return await passthrough.unary(method, request.SerializeToString(), context, request.name)

    return handler


def _health(passthrough: Passthrough) -> UnaryHandler:
    """SERVING while an engine is up, whatever service is asked for: what Triton itself answers."""

    async def handler(_raw: bytes, _context: Any) -> Any:
        status = health_pb2.HealthCheckResponse.ServingStatus
        return health_pb2.HealthCheckResponse(status=status.SERVING if passthrough.up else status.NOT_SERVING)

    return handler


def _observed(
    handler: Callable[..., Awaitable[Any]], method: str, observer: RpcObserver, tracing: Tracing | None = None
) -> Callable[..., Any]:
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
        except Exception:
            code = "UNKNOWN"
            raise
        finally:
            observer.served(method, code, time.monotonic() - begun_s)
            if tracing is not None and trace is not None:
                tracing.end_rpc(trace, method, code)

    return observed


def _status(code: Any) -> Any:
    """grpc.aio keeps the status of an aborted call as its number."""
    if isinstance(code, int):
        return next((each.value for each in grpc.StatusCode if each.value[0] == code), grpc.StatusCode.UNKNOWN.value)
    return code.value if code is not None else grpc.StatusCode.UNKNOWN.value
