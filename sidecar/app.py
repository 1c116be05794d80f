"""One sidecar: its parts, wired by their constructors, and how they run until a signal ends them."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.trace import SpanProcessor

from sidecar import __version__
from sidecar.call import Listener
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.driver.driver import Driver
from sidecar.driver.engine_watch import EngineWatch
from sidecar.driver.metrics import DriverMetrics
from sidecar.frontend.access import Access
from sidecar.frontend.grpc_server import MethodServer
from sidecar.frontend.models import scheduled_models, serving
from sidecar.frontend.passthrough import Passthrough
from sidecar.frontend.rpc import HeldBytes
from sidecar.frontend.server import bind, build_server
from sidecar.frontend.service import OnlineService
from sidecar.keys import Keyring
from sidecar.lifecycle import Signals, prepare_for_many_connections, read_items, until_idle, until_it_ends
from sidecar.offline.gates import ModelGates
from sidecar.offline.job_counts import JobCounts
from sidecar.offline.lane import OfflineLane
from sidecar.offline.last_dead_letters import LastDeadLetters
from sidecar.offline.metrics import ItemDurations, OfflineMetrics
from sidecar.offline.owned_partition import FinishedItem
from sidecar.openai.server import OpenAiServer, build_openai
from sidecar.reload import Reloader, follow_keys
from sidecar.settings.file import ServeSettings, is_loopback
from sidecar.telemetry.connections import HttpServer
from sidecar.telemetry.event_log import EventLog
from sidecar.telemetry.http import Status, no_counts, serve_http, watch_loop_lag
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.recent import Recent
from sidecar.telemetry.recorder import Recorder
from sidecar.telemetry.tracing import Tracing, no_trace
from sidecar.tls import material
from sidecar.triton.client import EngineClient
from sidecar.triton.models import Unscheduled
from sidecar.triton.tokenizer import Tokens

MakeScheduler = Callable[[SchedulerSettings, Sequence[EngineSettings]], Scheduler]

logger = logging.getLogger(__name__)
LAST_ANSWERS_S = 2.0  # for answers that are written already, once nothing runs any more


# ---- the parts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Offline:
    """The lane that reads from Kafka, and what shows how it does."""

    lane: OfflineLane
    figures: OfflineMetrics
    counts: JobCounts
    dead: LastDeadLetters


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """The parts of one sidecar. Close it when nothing of it runs any more."""

    settings: ServeSettings
    clients: Mapping[str, EngineClient]
    driver: Driver
    metrics: Metrics
    tracing: Tracing | None
    passthrough: Passthrough
    online: OnlineService
    keyring: Keyring | None
    server: MethodServer
    openai: OpenAiServer | None
    watch: EngineWatch
    offline: Offline | None
    status: Status
    stack: AsyncExitStack

    async def close(self) -> None:
        """Close channels, files and threads. Spans and decisions that waited have been written."""
        await self.stack.aclose()


def build(
    settings: ServeSettings,
    *,
    instance: str,
    config_hash: str,
    scheduler: Scheduler | None = None,
    watchers: Sequence[Listener] = (),
    spans: SpanProcessor | None = None,
) -> Sidecar:
    """Wire the parts of one sidecar. Nothing runs, and no port is taken. Raises SettingsError.

    `instance` is unique among the sidecars of these engines. `watchers` listen to the driver beside those that the
    settings ask for. `spans` takes the spans in the place of the collector that the settings name.
    """
    scheduler = scheduler or Scheduler(settings.scheduler, for_scheduler(settings))
    stack = AsyncExitStack()
    clients = _clients(settings, stack)
    tracing = _tracing(settings, scheduler, spans, stack)
    trace_of = tracing.trace_id if tracing is not None else no_trace
    recorder = _recorder(settings, scheduler, trace_of, stack)
    metrics = _metrics(settings, config_hash, scheduler, tracing, recorder)
    tokens, recent = _tokens(settings, stack), Recent(settings.engines, scheduler)
    gates, suspected = ModelGates(), {name: asyncio.Event() for name in clients}
    keyring = None if settings.keys is None else Keyring(settings.keys)
    told = EventLog(settings.scheduler.ttft_objective_ms, trace_of)
    listeners = [each for each in (metrics, tracing, recorder, recent, told, keyring, *watchers) if each is not None]
    driver = _driver(settings, instance, scheduler, clients, listeners, tracing, gates, suspected)
    follow_keys(keyring, driver, settings.scheduler)
    unscheduled = Unscheduled(settings.engines, clients, tuple(serving(settings.engines)))
    passthrough = Passthrough(clients, serving(settings.engines), refused=unscheduled.refused)
    changed = passthrough.engine_is
    watch = EngineWatch(driver, settings.engines, clients, unscheduled, suspected=suspected, changed=changed)
    online = _online(settings, driver, tokens, passthrough, tracing, keyring)
    offline = _offline(settings, driver, tokens, metrics, tracing, gates)
    return Sidecar(
        settings=settings,
        clients=clients,
        driver=driver,
        metrics=metrics,
        tracing=tracing,
        passthrough=passthrough,
        online=online,
        keyring=keyring,
        server=build_server(online, passthrough, metrics, tracing, settings.limits),
        openai=build_openai(settings, driver, tokens, tracing, metrics.registry, keyring),
        watch=watch,
        offline=offline,
        status=_status(settings, driver, metrics, watch, recorder, offline, recent),
        stack=stack,
    )


def for_scheduler(settings: ServeSettings) -> list[EngineSettings]:
    """What the scheduler has to know of the engines."""
    return [each.for_scheduler() for each in settings.engines]


def _clients(settings: ServeSettings, stack: AsyncExitStack) -> dict[str, EngineClient]:
    """A channel to each engine, closed with `stack`."""
    tls = material(settings.tls.engines, "tls.engines")
    clients = {each.name: EngineClient(each.target, each.own_metadata(), tls) for each in settings.engines}
    for client in clients.values():
        stack.push_async_exit(client)
    return clients


def _tracing(
    settings: ServeSettings, scheduler: Scheduler, spans: SpanProcessor | None, stack: AsyncExitStack
) -> Tracing | None:
    """The spans' maker, closed with `stack`. None without an endpoint: then no span is made."""
    if settings.tracing.endpoint is None:
        return None
    tracing = Tracing(
        settings.tracing,
        address=settings.listen,
        version=__version__,
        ttft_objective_ms=settings.scheduler.ttft_objective_ms,
        processor=spans,
        queue_of=scheduler.queue_of,
        tls=material(settings.tls.tracing, "tls.tracing"),
    )
    stack.push_async_callback(tracing.close)
    return tracing


def _recorder(
    settings: ServeSettings, scheduler: Scheduler, trace_of: Callable[[str], str], stack: AsyncExitStack
) -> Recorder | None:
    """The decision recorder, closed with `stack`. None without a directory for it."""
    if settings.recorder is None:
        return None
    recorder = Recorder(settings.recorder, scheduler, trace_of=trace_of)
    stack.callback(recorder.close)
    return recorder


def _tokens(settings: ServeSettings, stack: AsyncExitStack) -> Tokens | None:
    """The tokenizer, closed with `stack`. None if the settings name none."""
    if settings.tokenizer is None:
        return None
    tokens = Tokens.load(settings.tokenizer, settings.end_ids)
    stack.callback(tokens.close)
    return tokens


def _metrics(
    settings: ServeSettings, config_hash: str, scheduler: Scheduler, tracing: Tracing | None, recorder: Recorder | None
) -> Metrics:
    return Metrics(
        settings.engines,
        version=__version__,
        config_hash=config_hash,
        scheduler=settings.scheduler,
        queue_of=scheduler.queue_of,
        exemplar=None if tracing is None else tracing.exemplar,
        dropped_spans=lambda: 0 if tracing is None else tracing.dropped_spans,
        recorder=None if recorder is None else recorder.document,
    )


def _driver(
    settings: ServeSettings,
    instance: str,
    scheduler: Scheduler,
    clients: Mapping[str, EngineClient],
    listeners: Sequence[Listener],
    tracing: Tracing | None,
    gates: ModelGates,
    suspected: Mapping[str, asyncio.Event],
) -> Driver:
    return Driver(
        scheduler,
        clients,
        instance=instance,
        stop_timeout_s=settings.stop_timeout_s,
        progress_timeout_s=settings.progress_timeout_s,
        listeners=listeners,
        tracer=tracing,
        intake=gates.turn,
        trouble=lambda engine: suspected[engine].set(),
    )


def _online(
    settings: ServeSettings,
    driver: Driver,
    tokens: Tokens | None,
    passthrough: Passthrough,
    tracing: Tracing | None,
    keyring: Keyring | None,
) -> OnlineService:
    access = None if keyring is None else Access(keyring)
    models, held = scheduled_models(settings.engines, tokens), HeldBytes(settings.limits)
    return OnlineService(driver, models, passthrough, tracing, settings.aliases, held, access)


def _offline(
    settings: ServeSettings,
    driver: Driver,
    tokens: Tokens | None,
    metrics: Metrics,
    tracing: Tracing | None,
    gates: ModelGates,
) -> Offline | None:
    """The offline lane; None if the settings name no Kafka."""
    if settings.offline is None or tokens is None:
        return None
    topic, counts, dead = settings.offline.requests_topic, JobCounts(), LastDeadLetters()
    durations = ItemDurations(metrics.registry, topic)

    def on_committed(done: FinishedItem) -> None:
        durations.committed(done)
        counts.committed(done)
        dead.committed(done)

    lane = OfflineLane(
        settings.offline,
        driver,
        tokens,
        {each.model: each.tokens_max for each in settings.engines},
        on_committed=on_committed,
        tracing=tracing,
        aliases=settings.aliases,
        jobs=driver.scheduler.jobs_named,
        gates=gates,
    )
    figures = OfflineMetrics(metrics.registry, topic, lane, counts)
    return Offline(lane=lane, figures=figures, counts=counts, dead=dead)


def _status(
    settings: ServeSettings,
    driver: Driver,
    metrics: Metrics,
    watch: EngineWatch,
    recorder: Recorder | None,
    offline: Offline | None,
    recent: Recent,
) -> Status:
    snapshot, parts = driver.scheduler.snapshot, dict[str, Callable[[], Any]]()
    looks = [DriverMetrics(metrics.registry, driver, {each.name: each.model for each in settings.engines}).look]
    if recorder is not None:
        parts["recorder"] = recorder.document
    counts = no_counts if offline is None else offline.counts.of
    if offline is not None:
        parts |= {"offline": offline.figures.document, "last_dead_letters": offline.dead.document}
        looks.append(offline.figures.look)
    return Status(
        snapshot, metrics, __version__, engines=watch, parts=parts, looks=looks, job_counts=counts, recent=recent
    )


# ---- the run ---------------------------------------------------------------------------------------------------------


async def serve(
    settings: ServeSettings,
    *,
    instance: str,
    config_hash: str,
    make_scheduler: MakeScheduler = Scheduler,
    read_again: Callable[[], ServeSettings] | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT, then drain. Return False if a second signal ended it before it had drained.

    `make_scheduler` builds what decides; a bench puts a baseline there. `instance` is unique among the sidecars of
    these engines. `read_again` reads the settings at SIGHUP. Raises SettingsError before anything is served.
    """
    prepare_for_many_connections()
    scheduler = make_scheduler(settings.scheduler, for_scheduler(settings))
    sidecar = build(settings, instance=instance, config_hash=config_hash, scheduler=scheduler)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(sidecar.close)
        bind(sidecar.server, settings.listen, material(settings.tls.listen, "tls.listen"))
        stack.push_async_callback((await _open_http(sidecar)).cleanup)
        async with asyncio.TaskGroup() as tasks:
            obeying = tasks.create_task(sidecar.driver.run(), name="driver")
            signals = Signals(None if read_again is None else _reload(sidecar, read_again).reload)
            watching = [
                tasks.create_task(watch_loop_lag(sidecar.metrics), name="loop lag"),
                tasks.create_task(sidecar.watch.run(), name="engine watch"),
            ]
            reading = None
            if sidecar.offline is not None:
                reading = tasks.create_task(read_items(sidecar.offline.lane), name="offline lane")
            gc.collect()
            gc.freeze()  # what is loaded stays; full collections walked it again and held up the loop for tens of ms
            await sidecar.server.start()
            if sidecar.openai is not None:
                await sidecar.openai.start()
                stack.push_async_callback(sidecar.openai.close)
            watching.append(tasks.create_task(until_it_ends(sidecar.server, signals.closing), name="gRPC server"))
            logger.info("serving on %s", started(settings))
            for address in (settings.listen, settings.openai.listen) if settings.openai else (settings.listen,):
                if settings.keys is None and not is_loopback(address):
                    logger.warning("no keys: whoever reaches %s may send requests, as any tenant", address)
            await signals.closing.wait()
            draining = tasks.create_task(_drain(sidecar, obeying, reading), name="drain")
            if not await signals.done_before_the_second(draining):
                watching += [draining, obeying, *filter(None, (reading,))]
                await sidecar.server.stop(0)
            for task in watching:
                task.cancel()
        logger.info("drained" if signals.drained else "ended at once, without draining")
        return signals.drained


async def _open_http(sidecar: Sidecar) -> HttpServer:
    settings, keyring = sidecar.settings, sidecar.keyring
    seen_by = keyring.operates if settings.keys and settings.keys.http and keyring else None
    tls = material(settings.tls.http, "tls.http")
    return await serve_http(settings.http, sidecar.status, sidecar.metrics, settings.limits, tls=tls, seen_by=seen_by)


def _reload(sidecar: Sidecar, read_again: Callable[[], ServeSettings]) -> Reloader:
    return Reloader(sidecar.settings, read_again, sidecar.driver, sidecar.keyring)


async def _drain(sidecar: Sidecar, obeying: asyncio.Task[None], reading: asyncio.Task[None] | None) -> None:
    """Take no new request, let what runs end in time, then stop the callers' server."""
    settings, driver, passthrough = sidecar.settings, sidecar.driver, sidecar.passthrough
    logger.info("draining, for at most %g s; a second signal ends it at once", settings.drain_timeout_s)
    until_s = driver.now_s + settings.drain_timeout_s
    passthrough.readiness.drain()
    driver.close()
    if sidecar.offline is not None and reading is not None and not reading.done():
        await sidecar.offline.lane.drain(settings.offline_drain_timeout_s)
    await until_idle(driver, obeying, max(until_s - driver.now_s, 0.0))
    passthrough.readiness.end()
    left_s = max(until_s - driver.now_s, LAST_ANSWERS_S)
    await sidecar.server.stop(left_s if passthrough.running else LAST_ANSWERS_S)


def started(settings: ServeSettings) -> str:
    """What serves where, and over what, in one line."""
    engines = ", ".join(f"{each.name} at {each.target} ({each.model}, {each.slots} slots)" for each in settings.engines)
    offline = "none"
    if (kafka := settings.offline) is not None:
        offline = f"{kafka.requests_topic} at {kafka.bootstrap_servers}, group {kafka.group}"
    recorder = "" if settings.recorder is None else f"; decisions in {settings.recorder.directory}"
    openai = "" if settings.openai is None else f"; OpenAI API at {settings.openai.listen}"
    callers = "anybody" if settings.keys is None else f"by the keys in {settings.keys.file}"
    callers += "" if settings.tls.listen is None else ", over TLS"
    http = f"{settings.http}{'' if settings.tls.http is None else ' over TLS'}{openai}"
    return f"{settings.listen}; callers {callers}; http {http}; engines {engines}; offline {offline}{recorder}"
