"""Whether an engine is up, and what its gauges say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiohttp import web

from sidecar.core.events import Measured
from sidecar.edge import probes
from sidecar.edge.config import EngineEndpoint
from sidecar.edge.engine_client import EngineClient
from sidecar.edge.probes import Prober, parse_gauges
from sidecar.local.broker import free_ports
from tests.edge.conftest import Sidecar, running_sidecar
from tests.edge.fake_triton import FakeTriton

PAGE = """# HELP nv_trt_llm_request_metrics TensorRT-LLM request metrics
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 7
nv_trt_llm_request_metrics{model="other",request_type="active",version="1"} 99
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 2560
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="free",model="tensorrt_llm",version="1"} 2.5e+03
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm",version="1"} 32
"""


def test_the_gauges_of_this_model_are_read_whatever_the_order_of_the_labels() -> None:
    assert parse_gauges("e0", "tensorrt_llm", PAGE) == Measured(
        engine="e0", ok=True, active_requests=7, kv_blocks_max=2560, kv_blocks_free=2500, tokens_per_block=32
    )


def test_a_page_without_gauges_measures_nothing_but_did_answer() -> None:
    assert parse_gauges("e0", "tensorrt_llm", "nv_inference_count 3\n") == Measured(engine="e0", ok=True)


@dataclass(slots=True)
class Probed:
    sidecar: Sidecar
    prober: Prober
    changes: list[tuple[str, bool]]


@pytest.fixture
async def probed(triton: FakeTriton) -> AsyncIterator[Probed]:
    """A sidecar whose engine is believed down until the prober says otherwise."""
    async with running_sidecar({"e0": triton}, up=False) as sidecar, EngineClient(triton.target) as client:
        changes: list[tuple[str, bool]] = []
        engine = EngineEndpoint(name="e0", target=triton.target)
        prober = Prober(sidecar.driver, engine, client, lambda name, up: changes.append((name, up)))
        task = asyncio.create_task(prober.run())
        yield Probed(sidecar, prober, changes)
        task.cancel()
        await asyncio.wait((task,))


async def test_an_engine_that_answers_a_request_is_up(probed: Probed) -> None:
    await probed.sidecar.until(lambda: probed.changes == [("e0", True)])
    assert probed.sidecar.driver.scheduler.snapshot().engines["e0"].up


async def test_a_broken_stream_makes_the_prober_look_at_once(probed: Probed, triton: FakeTriton) -> None:
    await probed.sidecar.until(lambda: probed.prober.up)
    await triton.__aexit__()
    probed.prober.look_now()
    await probed.sidecar.until(lambda: not probed.prober.up)
    assert probed.changes == [("e0", True), ("e0", False)]
    assert not probed.sidecar.driver.scheduler.snapshot().engines["e0"].up


async def test_load_that_is_not_ours_is_said_and_counted(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pages = [PAGE, PAGE.replace("} 7", "} 0")]
    scrapes = 0

    async def page(_: web.Request) -> web.Response:
        nonlocal scrapes
        scrapes += 1
        return web.Response(text=pages[0])

    application = web.Application()
    application.router.add_get("/metrics", page)
    runner = web.AppRunner(application)
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    monkeypatch.setattr(probes, "PERIOD_S", 0.01)
    caplog.set_level("INFO", logger=probes.__name__)
    async with running_sidecar({"e0": triton}) as sidecar, EngineClient(triton.target) as client:
        url = f"http://127.0.0.1:{port}/metrics"
        engine = EngineEndpoint(name="e0", target=triton.target, metrics_url=url)
        task = asyncio.create_task(Prober(sidecar.driver, engine, client, lambda *_: None).run())
        await sidecar.until(lambda: "7 slots are in use that are not ours" in caplog.text)
        assert sidecar.driver.scheduler.snapshot().engines["e0"].foreign_slots == 7
        await sidecar.until(lambda: scrapes > 10)  # it stays so for some of them
        pages.pop(0)
        await sidecar.until(lambda: "no slot is in use that is not ours" in caplog.text)
        task.cancel()
        await asyncio.wait((task,))
    await runner.cleanup()
    assert caplog.text.count("that are not ours") == 1  # said once, however often it is seen
