"""The gRPC server that callers see: Triton's service and the standard health check, over raw handlers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from sidecar.core.errors import SettingsError
from sidecar.frontend.caller_stream import stream_handler
from sidecar.frontend.grpc_server import MethodServer
from sidecar.frontend.health import HEALTH, Health
from sidecar.frontend.models import Models
from sidecar.frontend.passthrough import PASSED_THROUGH, Passthrough
from sidecar.frontend.rpc import Calls, RpcObserver
from sidecar.frontend.service import OnlineService
from sidecar.settings.limits import LimitSettings
from sidecar.telemetry.tracing import Tracing
from sidecar.tls import Material
from sidecar.triton.client import SERVICE

ABOUT_A_MODEL = {
    "ModelMetadata": service_pb2.ModelMetadataRequest,
    "ModelConfig": service_pb2.ModelConfigRequest,
    "ModelStatistics": service_pb2.ModelStatisticsRequest,
}
UnaryHandler = Callable[[bytes, Any], Awaitable[Any]]


def build_server(
    online: OnlineService,
    passthrough: Passthrough,
    observer: RpcObserver,
    tracing: Tracing | None = None,
    limits: LimitSettings | None = None,
) -> MethodServer:
    """Return a server with all methods. It has no port yet, and does not run."""
    limits = limits or LimitSettings()
    server = MethodServer(limits.server_options())
    calls = Calls(observer, tracing, online.held, limits, online.access)
    health = Health(passthrough, online.models)
    methods = {name: _passed_through(passthrough, name) for name in PASSED_THROUGH}
    for name, message in ABOUT_A_MODEL.items():
        methods[name] = _about_a_model(passthrough, name, message, online.models)
    methods |= {"ServerReady": health.server_ready, "ModelReady": health.model_ready}
    methods["ModelInfer"] = online.model_infer
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            calls.infer(handler, f"{SERVICE}/{name}"), response_serializer=_serialized
        )
        for name, handler in methods.items()
    }
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        calls.infer(stream_handler(online, passthrough), f"{SERVICE}/ModelStreamInfer")  # raw both ways
    )
    health_handlers: dict[str, Any] = {
        "Check": grpc.unary_unary_rpc_method_handler(
            calls.observed(health.check, f"{HEALTH}/Check"), response_serializer=_serialized
        ),
        "Watch": grpc.unary_stream_rpc_method_handler(calls.observed(health.watch, f"{HEALTH}/Watch")),
    }
    server.serve(SERVICE, handlers)
    server.serve(HEALTH, health_handlers)
    return server


def bind(server: MethodServer, address: str, tls: Material | None = None) -> int:
    """Bind the server to `address` (host:port), and return its port. Raises SettingsError if it is taken."""
    try:
        if tls is not None:
            return server.add_secure_port(address, tls.server_credentials())
        return server.add_insecure_port(address)
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
