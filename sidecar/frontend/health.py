"""The standard health service, grpc.health.v1, and Triton's own two questions whether anything is ready.

Ours and not the servicer of grpcio-health-checking (1.81): there one watcher who leaves takes the others' notice away,
and one who does not read keeps the state from being set.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2

from sidecar.frontend.models import Models
from sidecar.frontend.passthrough import UNREADABLE, Passthrough
from sidecar.frontend.rpc import refuse
from sidecar.triton.client import SERVICE

HEALTH = "grpc.health.v1.Health"
SERVICES = ("", SERVICE, HEALTH)
_STATUS = health_pb2.HealthCheckResponse.ServingStatus


class Health:
    """Says whether requests are served now: by Check and Watch, by ServerReady and by ModelReady."""

    def __init__(self, passthrough: Passthrough, models: Models) -> None:
        self._readiness = passthrough.readiness
        self._passthrough = passthrough
        self._models = models

    async def check(self, _raw: bytes, _context: Any) -> Any:
        """SERVING or NOT_SERVING, whatever service is asked for: what Triton itself answers."""
        return health_pb2.HealthCheckResponse(status=self._status())

    async def watch(self, raw: bytes, context: Any) -> None:
        """The status now and at each change; of a service that is not here SERVICE_UNKNOWN, as the protocol says."""
        try:
            service = health_pb2.HealthCheckRequest.FromString(raw).service
        except DecodeError:
            await refuse(context, *UNREADABLE)
        told = None
        while not self._readiness.over:  # an open stream would hold up the end of the process
            changed = self._readiness.changed
            status = self._status() if service in SERVICES else _STATUS.SERVICE_UNKNOWN
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status).SerializeToString())
                told = status
            await changed.wait()

    async def server_ready(self, raw: bytes, context: Any) -> Any:
        """Triton's answer while requests are served, else not ready: Triton lives on when its model does not answer."""
        if not self._readiness.serving:
            return service_pb2.ServerReadyResponse(ready=False)
        return await self._passthrough.unary("ServerReady", raw, context)

    async def model_ready(self, raw: bytes, context: Any) -> Any:
        """Triton's answer, but not ready if we drain or no engine of a scheduled model is up."""
        try:
            request = service_pb2.ModelReadyRequest.FromString(raw)
        except DecodeError:
            await refuse(context, *UNREADABLE)
        request.name = self._models.named(request.name)
        down = self._passthrough.scheduled(request.name) and not self._passthrough.serves(request.name)
        if self._readiness.draining or down:
            return service_pb2.ModelReadyResponse(ready=False)
        return await self._passthrough.unary("ModelReady", request.SerializeToString(), context, request.name)

    def _status(self) -> Any:
        return _STATUS.SERVING if self._readiness.serving else _STATUS.NOT_SERVING
