"""The parts of one sidecar: wired by their constructors, in whatever order they listen."""

from __future__ import annotations

import ast
import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from sidecar import app
from sidecar.app import build
from sidecar.core.errors import SettingsError
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.frontend.server import bind
from sidecar.settings.file import EngineEndpoint, ServeSettings, TracingSettings
from sidecar.settings.offline import OfflineSettings
from sidecar.settings.recorder import RecorderSettings
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.recorder import Recorder
from sidecar.telemetry.tracing import Tracing
from tests.driver.test_generation import END, call, offline
from tests.fakes.engine import FakeEngine, running_driver

ENGINE = EngineEndpoint(name="e0", target="127.0.0.1:1")
TOKENIZER = Path(__file__).parent.parent / "model_repository/tokenizer/tokenizer.json"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def test_nothing_is_set_from_outside_an_object() -> None:
    stored = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(Path(app.__file__).read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    ]
    assert stored == []


async def seen_by(order: Sequence[str], tmp_path: Path) -> tuple[set[tuple[str, str]], list[str], int]:
    """What three listeners in this order show of one request: exemplars, spans, recorded decisions that were
    dropped."""
    engine, exporter = FakeEngine(), InMemorySpanExporter()
    listeners: dict[str, Metrics | Tracing | Recorder] = {}

    def made(settings: SchedulerSettings, engines: Sequence[EngineSettings]) -> Scheduler:
        scheduler = Scheduler(settings, engines)
        tracing = Tracing(
            TracingSettings(endpoint="http://unused", offline_ratio=1.0),
            address="127.0.0.1:1",
            version="test",
            processor=SimpleSpanProcessor(exporter),
            seed=1,
            queue_of=scheduler.queue_of,
        )
        recorder = Recorder(RecorderSettings(directory=tmp_path), scheduler, in_thread=False)
        metrics = Metrics(
            (ENGINE,), version="test", config_hash="", exemplar=tracing.exemplar, queue_of=scheduler.queue_of
        )
        listeners.update(metrics=metrics, tracing=tracing, recorder=recorder)
        return scheduler

    class InOrder:
        """Hears for the listeners, which are made with the scheduler."""

        def handled(self, *heard: object) -> None:
            for name in order:
                listeners[name].handled(*heard)  # type: ignore[arg-type]

        def finished(self, *heard: object) -> None:
            for name in order:
                listeners[name].finished(*heard)  # type: ignore[arg-type]

    async with running_driver(engine, core=made, listeners=(InOrder(),)) as driver:
        metrics, tracing, recorder = (listeners[name] for name in ("metrics", "tracing", "recorder"))
        assert isinstance(metrics, Metrics)
        assert isinstance(tracing, Tracing)
        assert isinstance(recorder, Recorder)
        request = offline()
        tracing.adopt(request.id, tracing.item(None).process)
        task = asyncio.ensure_future(driver.generate(request, call()))
        (await engine.next()).tokens(4, END, final=True)
        await task
    recorder.close()
    page = metrics.render(OPENMETRICS)[0].decode()
    exemplars = {
        (family.name, sample.exemplar.labels["trace_id"])
        for family in text_string_to_metric_families(page)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar
    }
    return exemplars, [span.name for span in exporter.get_finished_spans()], recorder.dropped


async def test_the_order_of_listeners_does_not_matter(tmp_path: Path) -> None:
    orders = list(itertools.permutations(("metrics", "tracing", "recorder")))
    found = [await seen_by(order, tmp_path / str(number)) for number, order in enumerate(orders)]
    assert all(each == found[0] for each in found)
    exemplars, spans, dropped = found[0]
    assert {name for name, _ in exemplars} == {
        "gen_ai_server_request_duration_seconds",
        "gen_ai_server_time_to_first_token_seconds",
        "sidecar_queue_wait_seconds",
    }
    assert spans == ["wait_for_slot", "text_completion tensorrt_llm"]
    assert dropped == 0


async def test_two_sidecars_of_the_same_settings_are_built_and_one_gets_the_port() -> None:
    first = build(ServeSettings(engines=(ENGINE,), listen="127.0.0.1:0"), instance="a-", config_hash="")
    port = bind(first.server, first.settings.listen)
    second = build(ServeSettings(engines=(ENGINE,), listen=f"127.0.0.1:{port}"), instance="b-", config_hash="")
    with pytest.raises(SettingsError, match=f"^listen: cannot bind 127.0.0.1:{port}: "):
        bind(second.server, second.settings.listen)
    for each in (first, second):
        await each.server.stop(None)
        await each.close()


async def test_every_part_that_the_settings_ask_for_is_on_the_status_page(tmp_path: Path) -> None:
    made = build(
        ServeSettings(
            engines=(ENGINE,),
            tokenizer=TOKENIZER,
            offline=OfflineSettings(),
            recorder=RecorderSettings(directory=tmp_path),
        ),
        instance="a-",
        config_hash="",
    )
    document = made.status.document()
    assert document["offline"]["state"] == "starting"
    assert document["recorder"]["state"] == "running"
    assert document["engines"]["e0"]["faults"] == ["down: not probed yet"]
    await made.server.stop(None)
    await made.close()
