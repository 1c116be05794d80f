"""`sidecar status` and `sidecar doctor`: what runs, and whether what is configured can run."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from rich.console import Console, RenderableType

from sidecar.cli import status_view
from sidecar.cli.exposure import exposure_findings
from sidecar.cli.profile_findings import profile_findings
from sidecar.core.errors import SettingsError, SidecarError
from sidecar.core.events import Measured
from sidecar.errors import EngineError, StreamBrokenError
from sidecar.offline import broker_version
from sidecar.offline.kafka_errors import LogError, call, hear_aiokafka
from sidecar.offline.kafka_options import client_options
from sidecar.offline.kafka_topics import look as look_at_topics
from sidecar.settings.file import EngineEndpoint, ServeSettings, is_address, load_settings
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.status_text import status_text
from sidecar.tls import Material, material
from sidecar.triton.advice import with_advice
from sidecar.triton.client import EngineClient
from sidecar.triton.engine_size import (
    EngineSize,
    kv_sequences,
    look_at_size,
    of_gauges,
    size_faults,
    size_warnings,
)
from sidecar.triton.gauges import block_fault, measure
from sidecar.triton.models import look, shares
from sidecar.triton.tokenizer import Tokens

Shown = TypeVar("Shown")
WATCH_S = 1.0
STATUS_BYTES_MAX = 16 << 20
PROBE_TIMEOUT_S = 5.0


class StatusError(SidecarError):
    """No sidecar answers where one was expected."""


def register_status(subparsers: Any) -> None:
    """Add `status`."""
    parser = subparsers.add_parser("status", help="show what a running sidecar is doing")
    parser.add_argument("--http", default="127.0.0.1:8102", metavar="HOST:PORT", help="its http setting (%(default)s)")
    parser.add_argument("--watch", action="store_true", help="show it again every second until Ctrl-C")
    parser.set_defaults(run=_status)


def register_doctor(subparsers: Any) -> None:
    """Add `doctor`."""
    parser = subparsers.add_parser(
        "doctor", help="check the settings, and that engines and Kafka can be reached; starts nothing"
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the settings, as YAML")
    parser.add_argument("--profile", metavar="NAME|FILE", help="iteration times, of simulate or `sidecar profile`")
    parser.set_defaults(run=_doctor)


def _status(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    del environment
    if not is_address(options.http):
        raise SettingsError(f"--http must be host:port, without http://, not {options.http!r}")
    if not options.watch:
        print(asyncio.run(_fetch(options.http)))
        return 0
    with contextlib.suppress(KeyboardInterrupt):  # the usual end
        if sys.stdout.isatty():
            status_view.watch(partial(_drawn, options.http), Console(), WATCH_S)
        while True:
            try:
                shown = asyncio.run(_fetch(options.http))
            except StatusError as error:  # it may be starting again
                shown = str(error)
            print(shown, flush=True)
            time.sleep(WATCH_S)
    return 0


def _drawn(address: str, width: int, height: int) -> RenderableType:
    """One screen of `status --watch`. Raises StatusError."""
    document = asyncio.run(status_document(address))
    return _understood(address, lambda: status_view.view(document, width, height))


async def _fetch(address: str) -> str:
    """The status in words. Raises StatusError."""
    document = await status_document(address)
    return _understood(address, lambda: status_text(document))


async def status_document(address: str) -> dict[str, Any]:
    """The status as the sidecar at `address` gives it. Raises StatusError."""
    url = f"http://{address}/status.json"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http,
            http.get(url) as answer,
        ):
            answer.raise_for_status()
            document: dict[str, Any] = json.loads(await _bounded(answer))
            return document
    except (aiohttp.ClientError, TimeoutError) as error:
        raise StatusError(f"no sidecar answers on http://{address}: {error or type(error).__name__}") from None
    except (ValueError, RecursionError):
        raise StatusError(f"{url} is no status of a sidecar") from None
    if not isinstance(document, dict):
        raise StatusError(f"{url} is no status of a sidecar")
    return document


def _understood(address: str, shown: Callable[[], Shown]) -> Shown:
    """What `shown` makes of a document. Raises StatusError where it has not what is shown."""
    try:
        return shown()
    except (KeyError, TypeError, AttributeError, ValueError):
        raise StatusError(f"http://{address}/status.json is no status of a sidecar of this version") from None


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    """The body. Raises ValueError for one that is no status: whoever listens there may send for ever."""
    found = bytearray()
    async for chunk in answer.content.iter_any():
        found += chunk
        if len(found) > STATUS_BYTES_MAX:
            raise ValueError("too long")
    return bytes(found)


def _doctor(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = load_settings(options.config, environment)
    print(f"ok      settings: {options.config}")
    for verdict, finding in profile_findings(options.profile, settings) if options.profile else ():
        print(f"{verdict:7} {finding}")
    return asyncio.run(_examine(settings))


async def _examine(settings: ServeSettings) -> int:
    """Print one line per finding; 1 if one of them keeps the sidecar from its work."""
    failed = False
    async for verdict, finding in findings(settings):
        print(f"{verdict:7} {finding}")
        failed = failed or verdict == "FAILED"
    return int(failed)


async def findings(settings: ServeSettings) -> AsyncIterator[tuple[str, str]]:
    """(ok, warning or FAILED; what was found) of everything that the settings name."""
    tls = material(settings.tls.engines, "tls.engines")
    parts = [_engine_findings(engine, tls) for engine in settings.engines]
    parts += [_tokenizer_findings(settings), exposure_findings(settings)]
    if settings.offline is not None:
        parts.append(_kafka_findings(settings.offline))
    for part in parts:
        try:
            async for finding in part:
                yield finding
        except SidecarError as error:  # what is wrong with one part says nothing about the others
            yield "FAILED", str(error)


async def _tokenizer_findings(settings: ServeSettings) -> AsyncIterator[tuple[str, str]]:
    if settings.tokenizer is None:
        yield "warning", "tokenizer: none; the length of texts is estimated, and there is no offline lane from Kafka"
        return
    tokens = Tokens.load(settings.tokenizer, settings.end_ids)
    ends = ", ".join(map(str, (tokens.end_id, *tokens.further_end_ids)))
    yield "ok", f"tokenizer: {settings.tokenizer}, end {'ids' if tokens.further_end_ids else 'id'} {ends}"
    if tokens.chat_fault is None:
        yield "ok", "chat template: it takes a user's message"
    else:
        yield "warning", f"chat template: {tokens.chat_fault}; items with messages are refused"


async def _engine_findings(engine: EngineEndpoint, tls: Material | None) -> AsyncIterator[tuple[str, str]]:
    where = f"engine {engine.name} at {engine.target}"
    async with EngineClient(engine.target, engine.own_metadata(), tls) as client:
        try:
            await client.stop(engine.model, "doctor", PROBE_TIMEOUT_S)  # takes no slot, yet goes through the model
            yield "ok", f"{where}: model {engine.model} answers"
        except (EngineError, StreamBrokenError) as error:
            yield "FAILED", f"{where}: model {engine.model}: {with_advice(str(error))}"
            return
        async for finding in _model_findings(client, engine, where):
            yield finding
        try:
            sizes = await look_at_size(client, engine.model, PROBE_TIMEOUT_S)
        except (EngineError, TimeoutError) as error:
            sizes = ()
            yield "warning", f"{where}: how large it is was not told: {error or type(error).__name__}"
    if engine.metrics_url is None:
        yield "warning", f"{where}: no metrics_url; load that is not ours stays unseen"
    else:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)) as http:
            scrape = await measure(http, engine)
        sizes = (of_gauges(scrape), *sizes)
        for finding in _gauge_findings(engine, scrape.measured, where):
            yield finding
    for finding in size_findings(engine, sizes):
        yield finding[0], f"{where}: {finding[1]}"


def _gauge_findings(engine: EngineEndpoint, measured: Measured, where: str) -> Iterator[tuple[str, str]]:
    if not measured.ok or measured.active_requests is None:
        yield "warning", f"{where}: no gauges of TensorRT-LLM on {engine.metrics_url}"
    else:
        yield "ok", f"{where}: gauges say {measured.active_requests} active requests"
    if fault := block_fault(engine, measured):
        yield "FAILED", f"{where}: {fault}"


def size_findings(engine: EngineEndpoint, sizes: Sequence[EngineSize]) -> Iterator[tuple[str, str]]:
    """Yield how the settings stand to the engine's own word."""
    faults, warnings = size_faults(engine, sizes), size_warnings(engine, sizes)
    yield from (("FAILED", fault) for fault in faults)
    yield from (("warning", each) for each in warnings)
    if not faults and any(each.sequences_max for each in sizes):
        yield "ok", f"{engine.slots} slots of {engine.tokens_max} tokens are within what it has"
    if (found := kv_sequences(engine, sizes)) and found[1] < engine.slots:
        yield (
            "ok",
            f"its KV cache of {found[0]:,} tokens holds {found[1]} sequences of {engine.tokens_max} tokens: with long"
            f" ones it binds before the {engine.slots} slots do, and work waits for it",
        )


async def _model_findings(client: EngineClient, engine: EngineEndpoint, where: str) -> AsyncIterator[tuple[str, str]]:
    """Whether the text model is there, and who else runs on the engine."""
    try:
        found = await look(client, engine.model, PROBE_TIMEOUT_S)
    except EngineError as error:
        yield "warning", f"{where}: which models run on it is not known: {error}"
        return
    if fault := found.text_model_fault(engine):
        yield "FAILED", f"{where}: {fault}"
    elif engine.text_model is None:
        yield "ok", f"{where}: no text model: callers send token ids"
    else:
        yield "ok", f"{where}: text model {engine.text_model} is there"
    for model in found.unscheduled([engine.model, engine.text_model or ""]):
        yield "warning", f"{where}: {shares([model], engine.model)}"


async def _kafka_findings(offline: OfflineSettings) -> AsyncIterator[tuple[str, str]]:
    hear_aiokafka()
    admin = AIOKafkaAdminClient(**client_options(offline))
    try:
        async with call(offline.call_timeout_s):  # for the last cause: aiokafka alone says "Unable to bootstrap"
            await admin.start()
            topics = await look_at_topics(admin._client, offline)
        for finding in topics.findings(offline):
            yield finding
        version = await broker_version.metadata_version(offline)
        if note := broker_version.warning(version, offline.abort_fence):
            yield "warning", f"kafka: {note}"
    except (LogError, KafkaError, OSError) as error:  # a TimeoutError is an OSError
        yield "FAILED", f"kafka at {offline.bootstrap_servers}: {error}"
    finally:
        await admin.close()
