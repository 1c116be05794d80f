"""An engine that falls silent, and a fault that was contained, are seen from outside."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, generate_latest

from sidecar.driver.metrics import DriverMetrics
from tests.driver.test_generation import call, offline
from tests.fakes.engine import FakeEngine, running_driver


async def test_how_long_a_dispatch_has_given_no_token_is_told_and_absent_where_none_is_in_flight() -> None:
    engine, registry = FakeEngine(), CollectorRegistry()
    async with running_driver(engine) as driver:
        (name,) = driver.scheduler.snapshot().engines
        metrics = DriverMetrics(registry, driver, {name: "tensorrt_llm"})
        labels = {"model": "tensorrt_llm", "engine": name}
        metrics.look()
        assert "sidecar_engine_silence_seconds{" not in generate_latest(registry).decode()
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        stream = await engine.next()
        metrics.look()
        first = registry.get_sample_value("sidecar_engine_silence_seconds", labels)
        metrics.look()
        later = registry.get_sample_value("sidecar_engine_silence_seconds", labels)
        assert first is not None
        assert later is not None
        assert later > first >= 0
        stream.tokens(4, final=True)
        await task
        metrics.look()
        assert registry.get_sample_value("sidecar_engine_silence_seconds", labels) is None


async def test_a_contained_fault_is_counted_where_it_was_raised() -> None:
    registry = CollectorRegistry()
    async with running_driver(FakeEngine()) as driver:
        metrics = DriverMetrics(registry, driver, {})

        def intake(_model: str, _more: bool) -> None:
            raise KeyError("k")

        for _ in range(2):
            driver.contained.run("an intake listener", intake, "m", True)
        metrics.look()
        labels = {"where": "an intake listener", "error_type": "KeyError"}
        assert registry.get_sample_value("sidecar_contained_faults_total", labels) == 2
