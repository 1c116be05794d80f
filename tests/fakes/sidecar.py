"""A whole sidecar in the test's own loop, in front of one or more Tritons that do what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.trace import SpanProcessor

from sidecar.app import build
from sidecar.call import Listener
from sidecar.core.events import EngineUp
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import SchedulerSettings
from sidecar.driver.driver import Driver
from sidecar.frontend.passthrough import Passthrough
from sidecar.frontend.rpc import HeldBytes
from sidecar.frontend.server import bind
from sidecar.settings.aliases import Rule
from sidecar.settings.file import EngineEndpoint, ServeSettings, TracingSettings
from sidecar.settings.limits import LimitSettings
from sidecar.telemetry.http import Status
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.tracing import Tracing
from sidecar.tls import material
from sidecar.triton import wire
from sidecar.triton.client import SERVICE, Version
from tests.fakes.checked import Checked
from tests.fakes.triton import FakeTriton


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What a test may look at, and a channel to call it through."""

    driver: Driver
    metrics: Metrics
    channel: grpc.aio.Channel
    address: str
    passthrough: Passthrough
    held: HeldBytes
    tracing: Tracing | None
    status: Status

    def stream(self, **options: Any) -> Any:
        """A ModelStreamInfer call."""
        return self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=wire.InferRequest.SerializeToString,
            response_deserializer=wire.StreamResponse.FromString,
        )(**options)

    def unary(self, method: str, message: Any, answer: Any, **options: Any) -> Any:
        """A unary call of Triton's service."""
        return self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda each: each.SerializeToString(),
            response_deserializer=answer.FromString,
        )(message, **options)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Let the loop turn until `holds()`."""
        async with asyncio.timeout(5):
            while not holds():  # noqa: ASYNC110 - a state, not an event
                await asyncio.sleep(0)


@asynccontextmanager
async def running_sidecar(
    tritons: dict[str, FakeTriton],
    *,
    slots: int = 2,
    scheduler: SchedulerSettings | None = None,
    tracing: TracingSettings | None = None,
    spans: SpanProcessor | None = None,
    watcher: Listener | None = None,
    up: bool = True,
    aliases: Mapping[str, tuple[Rule, ...]] | None = None,
    own_metadata: dict[str, str] | None = None,
    limits: LimitSettings | None = None,
    prefill_slice_tokens: int | None = None,
    version: Version = (2, 71),
    credentials: grpc.ChannelCredentials | None = None,
    **options: Any,
) -> AsyncIterator[Sidecar]:
    """A sidecar whose engines are up, unless told otherwise. Nobody probes them."""
    engines = tuple(
        EngineEndpoint(
            name=name,
            target=each.target,
            model=each.engine_model,
            text_model=each.text_model,
            slots=slots,
            tokens_max=64,
            lost_hold_s=0.0,
            yield_rows="never",
            prefill_slice_tokens=prefill_slice_tokens,
            metadata=own_metadata or {},
        )
        for name, each in tritons.items()
    )
    settings = ServeSettings(
        engines=engines,
        listen="127.0.0.1:0",
        scheduler=scheduler or SchedulerSettings(window_ms=0),
        tracing=tracing or TracingSettings(),
        aliases=aliases or {},
        limits=limits or LimitSettings(),
        **options,
    )
    core = Scheduler(settings.scheduler, engines)
    checked = Checked(core)
    watchers = [each for each in (watcher, checked) if each is not None]
    made = build(settings, instance="t-", config_hash="test", scheduler=core, watchers=watchers, spans=spans)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(made.close)
        port = bind(made.server, settings.listen, material(settings.tls.listen, "tls.listen"))
        await made.server.start()
        stack.push_async_callback(made.server.stop, None)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(made.driver.run(), name="driver")
            for name in tritons if up else ():
                made.driver.handle(EngineUp(engine=name))
                made.passthrough.engine_is(name, True)
                made.clients[name].version = version
            address = f"127.0.0.1:{port}"
            async with _channel(address, credentials) as channel:
                yield Sidecar(
                    driver=made.driver,
                    metrics=made.metrics,
                    channel=channel,
                    address=address,
                    passthrough=made.passthrough,
                    held=made.online.held,
                    tracing=made.tracing,
                    status=made.status,
                )
            made.driver.close()
        checked.check_idle()


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address) if credentials is None else grpc.aio.secure_channel(address, credentials)


@pytest.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    async with FakeTriton() as fake:
        yield fake


@pytest.fixture
async def sidecar(triton: FakeTriton) -> AsyncIterator[Sidecar]:
    async with running_sidecar({"e0": triton}) as running:
        yield running
