"""Whether requests are served, by every way to ask: the health service, ServerReady and ModelReady agree."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2

from sidecar.triton.client import SERVICE
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton

STATUS = health_pb2.HealthCheckResponse.ServingStatus


def watch(sidecar: Sidecar, service: str = "") -> Any:
    call: Any = sidecar.channel.unary_stream(
        "/grpc.health.v1.Health/Watch", response_deserializer=health_pb2.HealthCheckResponse.FromString
    )
    return call(health_pb2.HealthCheckRequest(service=service).SerializeToString())


async def next_status(call: Any) -> Any:
    async with asyncio.timeout(5):
        return (await call.read()).status


async def ready(sidecar: Sidecar) -> tuple[Any, bool, bool, bool]:
    """Check, ServerReady, and ModelReady of a scheduled model and of another one."""
    check: Any = sidecar.channel.unary_unary(
        "/grpc.health.v1.Health/Check", response_deserializer=health_pb2.HealthCheckResponse.FromString
    )
    models = [
        await sidecar.unary("ModelReady", service_pb2.ModelReadyRequest(name=name), service_pb2.ModelReadyResponse)
        for name in ("tensorrt_llm", "resnet")
    ]
    server = await sidecar.unary("ServerReady", service_pb2.ServerReadyRequest(), service_pb2.ServerReadyResponse)
    return (await check(b"")).status, server.ready, models[0].ready, models[1].ready


async def test_all_say_ready_while_an_engine_is_up(sidecar: Sidecar) -> None:
    assert await ready(sidecar) == (STATUS.SERVING, True, True, True)


async def test_all_say_not_ready_as_soon_as_the_sidecar_drains(sidecar: Sidecar) -> None:
    sidecar.passthrough.readiness.drain()
    assert await ready(sidecar) == (STATUS.NOT_SERVING, False, False, False)


async def test_a_scheduled_model_is_not_ready_without_an_engine_although_triton_says_so(sidecar: Sidecar) -> None:
    sidecar.passthrough.engine_is("e0", False)
    assert await ready(sidecar) == (STATUS.NOT_SERVING, False, False, True)


async def test_a_hung_engine_is_not_ready_at_once(triton: FakeTriton) -> None:
    triton.living = False
    async with running_sidecar({"e0": triton}, up=False) as sidecar, asyncio.timeout(1):
        answer = await sidecar.unary("ServerReady", service_pb2.ServerReadyRequest(), service_pb2.ServerReadyResponse)
        assert not answer.ready


async def test_a_watcher_hears_the_status_and_each_change(sidecar: Sidecar) -> None:
    calls = [watch(sidecar, service) for service in ("", SERVICE)]
    assert [await next_status(call) for call in calls] == [STATUS.SERVING] * 2
    sidecar.passthrough.engine_is("e0", False)
    assert [await next_status(call) for call in calls] == [STATUS.NOT_SERVING] * 2
    calls.pop().cancel()  # one who leaves takes the notice from nobody
    sidecar.passthrough.engine_is("e0", True)
    assert [await next_status(call) for call in calls] == [STATUS.SERVING]
    sidecar.passthrough.readiness.drain()
    assert [await next_status(call) for call in calls] == [STATUS.NOT_SERVING]
    sidecar.passthrough.readiness.end()
    assert [await call.read() for call in calls] == [grpc.aio.EOF]


async def test_a_watcher_of_an_unknown_service_hears_that_it_is_unknown(sidecar: Sidecar) -> None:
    call = watch(sidecar, "nobody")
    assert await next_status(call) == STATUS.SERVICE_UNKNOWN
    assert not call.done()
    call.cancel()


async def test_a_watch_that_cannot_be_parsed_is_refused(sidecar: Sidecar) -> None:
    ask: Any = sidecar.channel.unary_stream("/grpc.health.v1.Health/Watch")
    call = ask(b"\xff\xff")
    assert (await call.code(), await call.details()) == (grpc.StatusCode.INTERNAL, "Unable to parse request")
