"""One sidecar: the driver, the callers' gRPC server, the probes and the HTTP server, in one TaskGroup."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from sidecar import __version__
from sidecar.core.errors import SidecarError
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.driver.driver import Driver
from sidecar.driver.metrics import DriverMetrics
from sidecar.driver.probes import Prober
from sidecar.frontend.caller_request import ScheduledModel
from sidecar.frontend.grpc_server import Server
from sidecar.frontend.held_bytes import HeldBytes
from sidecar.frontend.passthrough import Passthrough
from sidecar.frontend.server import build_server
from sidecar.frontend.service import Online
from sidecar.offline.job_counts import JobCounts
from sidecar.offline.lane import OfflineLane
from sidecar.offline.metrics import OfflineMetrics
from sidecar.offline.owned_partition import Finished
from sidecar.settings.file import EngineEndpoint, ServeSettings
from sidecar.telemetry.faults import NoFileLeft
from sidecar.telemetry.http import Status, serve_http, watch_loop_lag
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.recorder import Recorder
from sidecar.telemetry.tracing import Tracing
from sidecar.triton.advice import with_advice
from sidecar.triton.client import EngineClient
from sidecar.triton.models import Unscheduled
from sidecar.triton.tokenizer import Tokens

MakeScheduler = Callable[[SchedulerSettings, Sequence[EngineSettings]], Scheduler]

logger = logging.getLogger(__name__)
_NO_FILE_LEFT = NoFileLeft()
VERSION_TIMEOUT_S = 5.0
FILES_WANTED = 65_536  # a connection is a file
LAST_ANSWERS_S = 2.0  # for answers that are written already, once nothing runs any more


async def serve(
    settings: ServeSettings, *, instance: str, config_hash: str, make_scheduler: MakeScheduler = Scheduler
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal breaks off what still runs.

    `make_scheduler` builds what decides; a bench puts a baseline there. `instance` is unique among the sidecars of
    these engines. Raises SettingsError before anything is served.
    """
    closing = asyncio.Event()
    prepare_for_many_connections()
    async with AsyncExitStack() as stack:
        clients = {
            each.name: await stack.enter_async_context(EngineClient(each.target, each.own_metadata()))
            for each in settings.engines
        }
        metrics = Metrics(settings.engines, version=__version__, config_hash=config_hash, scheduler=settings.scheduler)
        scheduler = make_scheduler(settings.scheduler, [each.for_scheduler() for each in settings.engines])
        metrics.queue_of = scheduler.queue_of
        tracing = _tracing(settings)
        if tracing is not None:
            tracing.queue_of, metrics.exemplar = scheduler.queue_of, tracing.exemplar
            metrics.dropped_spans = lambda: tracing.dropped_spans
            stack.push_async_callback(tracing.close)
        recorder = _recorder(settings, scheduler, metrics, stack)
        driver = Driver(
            scheduler,
            clients,
            instance=instance,
            stop_timeout_s=settings.stop_timeout_s,
            progress_timeout_s=settings.progress_timeout_s,
            listeners=[each for each in (metrics, tracing, recorder) if each is not None],
            tracer=tracing,
        )
        passthrough = Passthrough(clients, serving(settings.engines))
        tokens = Tokens.load(settings.tokenizer) if settings.tokenizer else None
        if tokens is not None:
            stack.callback(tokens.close)
        held = HeldBytes(settings.limits)
        online = Online(driver, scheduled_models(settings, tokens), passthrough, tracing, settings.aliases, held)
        server, _ = build_server(settings.listen, online, passthrough, metrics, tracing, settings.limits)
        status = Status(driver.scheduler.snapshot, metrics, __version__)
        models = {each.name: each.model for each in settings.engines}
        status.looks.append(DriverMetrics(metrics.registry, driver, models).look)
        if recorder is not None:
            status.parts["recorder"] = recorder.document
        offline = _offline_lane(settings, driver, tokens, metrics, status, tracing)
        runner = await serve_http(settings.http, status, metrics, settings.limits)
        stack.push_async_callback(runner.cleanup)
        async with asyncio.TaskGroup() as tasks:
            obeying = tasks.create_task(driver.run(), name="driver")
            _on_signals(closing.set, obeying.cancel)
            watching = [
                tasks.create_task(watch_loop_lag(metrics), name="loop lag"),
                *_probe(settings, driver, clients, passthrough, status, tasks),
            ]
            reading = None if offline is None else tasks.create_task(_read_items(offline), name="offline lane")
            gc.collect()
            gc.freeze()  # what is loaded stays; full collections walked it again and held up the loop for tens of ms
            await server.start()
            watching.append(tasks.create_task(_until_it_ends(server, closing), name="gRPC server"))
            logger.info("serving on %s", started(settings))
            await closing.wait()
            logger.info(
                "draining, for at most %g s; a second signal breaks off what still runs", settings.drain_timeout_s
            )
            until_s = driver.now_s + settings.drain_timeout_s
            passthrough.readiness.drain()
            driver.close()
            if offline is not None and reading is not None and not reading.done():
                await offline.drain(settings.offline_drain_timeout_s)
            await _drain(driver, obeying, max(until_s - driver.now_s, 0.0))
            passthrough.readiness.end()
            await server.stop(max(until_s - driver.now_s, LAST_ANSWERS_S) if passthrough.running else LAST_ANSWERS_S)
            for task in watching:
                task.cancel()
        logger.info("drained")


def prepare_for_many_connections() -> None:
    """The process may have many files open, and says only once a minute that it has none left.

    The soft limit is often 1,024, for the sake of programs that use `select`; each process may raise it for itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES_WANTED:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_WANTED if hard < 0 else min(hard, FILES_WANTED), hard))
    logging.getLogger("asyncio").addFilter(_NO_FILE_LEFT)


def started(settings: ServeSettings) -> str:
    """What serves where, and over what, in one line."""
    engines = ", ".join(f"{each.name} at {each.target} ({each.model}, {each.slots} slots)" for each in settings.engines)
    offline = "none"
    if (kafka := settings.offline) is not None:
        offline = f"{kafka.requests_topic} at {kafka.bootstrap_servers}, group {kafka.group}"
    recorder = "" if settings.recorder is None else f"; decisions in {settings.recorder.directory}"
    return f"{settings.listen}; http {settings.http}; engines {engines}; offline {offline}{recorder}"


def serving(engines: Sequence[EngineEndpoint]) -> dict[str, list[str]]:
    """The engines that serve each model, by its name."""
    names: dict[str, list[str]] = {}
    for engine in engines:
        for model in filter(None, (engine.model, engine.text_model)):
            names.setdefault(model, []).append(engine.name)
    return names


def scheduled_models(settings: ServeSettings, tokens: Tokens | None) -> list[ScheduledModel]:
    """The models whose requests are granted slots: the engines' own, and the text models over them."""
    tokens_max: dict[tuple[str, str], int] = {}
    for engine in settings.engines:
        for name in (engine.model, engine.text_model):
            if name is not None:
                key = (name, engine.model)
                tokens_max[key] = max(tokens_max.get(key, 0), engine.tokens_max)
    return [
        ScheduledModel(name=name, engine_model=model, tokens_max=most, tokens=tokens)
        for (name, model), most in sorted(tokens_max.items())
    ]


def _recorder(
    settings: ServeSettings, scheduler: Scheduler, metrics: Metrics, stack: AsyncExitStack
) -> Recorder | None:
    """The decision recorder, closed with `stack`; None without a directory for it."""
    if settings.recorder is None:
        return None
    recorder = Recorder(settings.recorder, scheduler)
    stack.callback(recorder.close)
    metrics.recorder = recorder.document
    return recorder


def _tracing(settings: ServeSettings) -> Tracing | None:
    """None without an endpoint: then no span is made."""
    if settings.tracing.endpoint is None:
        return None
    objective_ms = settings.scheduler.ttft_objective_ms
    return Tracing(settings.tracing, address=settings.listen, version=__version__, ttft_objective_ms=objective_ms)


def _offline_lane(
    settings: ServeSettings,
    driver: Driver,
    tokens: Tokens | None,
    metrics: Metrics,
    status: Status,
    tracing: Tracing | None,
) -> OfflineLane | None:
    """The lane that reads from Kafka, not running yet; None if the settings name no Kafka."""
    if settings.offline is None or tokens is None:
        return None
    figures = OfflineMetrics(metrics.registry, settings.offline.requests_topic)
    tokens_max = {each.model: each.tokens_max for each in settings.engines}
    counts = JobCounts()
    status.job_counts = counts.of

    def on_durable(done: Finished) -> None:
        figures.durable(done)
        counts.durable(done)

    lane = figures.lane = OfflineLane(
        settings.offline,
        driver,
        tokens,
        tokens_max,
        on_durable=on_durable,
        tracing=tracing,
        aliases=settings.aliases,
        jobs=driver.scheduler.jobs_named,
    )
    driver.intake_listeners.append(lambda model, more: (lane.resume if more else lane.pause)(model))
    status.parts["offline"] = figures.document
    status.looks.append(figures.look)
    return lane


async def _read_items(lane: OfflineLane) -> None:
    """Run the lane. Only a defect stops it, and then it says so; online goes on."""
    try:
        await lane.run()
    except Exception as error:
        places = "; ".join(f"{each.filename}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__))
        logger.error(
            "the offline lane is %s (%s)", lane.state, places
        )  # without the text: it may hold a part of an item


def _probe(
    settings: ServeSettings,
    driver: Driver,
    clients: dict[str, EngineClient],
    passthrough: Passthrough,
    status: Status,
    tasks: asyncio.TaskGroup,
) -> list[asyncio.Task[None]]:
    """One prober per engine is running, and one look at the models beside what they probe."""

    endpoints = {each.name: each for each in settings.engines}

    def changed(name: str, up: bool, reason: str) -> None:
        engine = endpoints[name]
        fields = {"engine": name, "model": engine.model, "target": engine.target, "up": up}
        if up:
            logger.info("engine %s is up: model %s at %s", name, engine.model, engine.target, extra=fields)
        else:
            told = with_advice(reason)
            logger.warning(
                "engine %s is down: model %s at %s: %s", name, engine.model, engine.target, told, extra=fields
            )
        passthrough.engine_is(name, up)
        status.engine_changed(name, up, reason)
        if up:
            unscheduled.look_soon(name)
            # It may be another Triton than before.
            tasks.create_task(clients[name].look_up_version(VERSION_TIMEOUT_S), name=f"version of {name}")

    unscheduled = Unscheduled(settings.engines, clients, tuple(serving(settings.engines)))
    passthrough.refused = unscheduled.refused
    probers = {each.name: Prober(driver, each, clients[each.name], changed) for each in settings.engines}
    driver.trouble = lambda name: probers[name].look_now()

    def faults(name: str) -> list[str]:
        down = "" if probers[name].up else f"down: {with_advice(probers[name].health.reason)}"
        prober = probers[name]
        said = (down, unscheduled.faults.get(name, ""), prober.block_fault, prober.slices_off)
        return [each for each in said if each]

    status.engine_faults = faults
    return [
        tasks.create_task(unscheduled.run(), name="models"),
        *(tasks.create_task(prober.run(), name=f"probe {name}") for name, prober in probers.items()),
    ]


async def _until_it_ends(server: Server, closing: asyncio.Event) -> None:
    """Raise SidecarError if the callers' server ends by itself: a sidecar that nobody can call must not live on."""
    await asyncio.shield(server.wait_for_termination())  # cancelled, it would cancel the server's own future
    if not closing.is_set():
        raise SidecarError("the gRPC server for callers has ended")


async def _drain(driver: Driver, obeying: asyncio.Task[None], timeout_s: float) -> None:
    """Nothing runs any more: it ended by itself, or was broken off after the timeout."""
    done, _ = await asyncio.wait({obeying}, timeout=timeout_s)
    if not done:
        logger.warning("%d dispatches still run after %g s; breaking off", driver.in_flight, timeout_s)
        obeying.cancel()
        await asyncio.wait({obeying})


def _on_signals(close: Callable[[], None], break_off: Callable[[], object]) -> None:
    """The first SIGTERM or SIGINT closes, the second breaks off."""
    signals_seen = 0

    def on_signal() -> None:
        nonlocal signals_seen
        signals_seen += 1
        close() if signals_seen == 1 else break_off()

    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, on_signal)
