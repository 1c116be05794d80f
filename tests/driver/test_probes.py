"""Whether an engine is up, and what its gauges say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count, repeat

import pytest
from aiohttp import web

from sidecar.core.events import Measured
from sidecar.driver import probes
from sidecar.driver.probes import EngineProbes, Prober
from sidecar.settings.file import EngineEndpoint
from sidecar.triton.client import EngineClient
from sidecar.triton.gauges import EngineScrape
from tests.driver.test_generation import begin, call
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.triton.test_gauges import PAGE


@dataclass(slots=True)
class Probed:
    sidecar: Sidecar
    prober: Prober
    changes: list[tuple[str, bool, str]]


@pytest.fixture
async def probed(triton: FakeTriton) -> AsyncIterator[Probed]:
    """A sidecar whose engine is believed down until the prober says otherwise."""
    async with running_sidecar({"e0": triton}, up=False) as sidecar, EngineClient(triton.target) as client:
        changes: list[tuple[str, bool, str]] = []
        engine = EngineEndpoint(name="e0", target=triton.target)
        prober = Prober(sidecar.driver, engine, client, lambda *change: changes.append(change))
        task = asyncio.create_task(prober.run())
        yield Probed(sidecar, prober, changes)
        task.cancel()
        await asyncio.wait((task,))


async def test_an_engine_that_answers_a_request_is_up(probed: Probed) -> None:
    await probed.sidecar.until(lambda: probed.changes == [("e0", True, "")])
    assert probed.sidecar.driver.scheduler.snapshot().engines["e0"].up
    assert (probed.prober.health.up, probed.prober.health.reason) == (True, "")


async def test_a_broken_stream_makes_the_prober_look_at_once_and_say_why_it_is_down(
    probed: Probed, triton: FakeTriton
) -> None:
    await probed.sidecar.until(lambda: probed.prober.up)
    await triton.__aexit__()
    probed.prober.look_now()
    await probed.sidecar.until(lambda: not probed.prober.up)
    ((name, up, reason),) = probed.changes[1:]
    assert (name, up) == ("e0", False)
    assert reason.startswith("UNAVAILABLE")
    assert probed.prober.health.reason == reason
    assert not probed.sidecar.driver.scheduler.snapshot().engines["e0"].up


async def test_an_engine_that_is_down_from_the_start_is_told_of_once_with_its_reason(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "PERIOD_S", 0.001)
    triton.refused_stops.add("probe")
    changes: list[tuple[str, bool, str]] = []
    async with running_sidecar({"e0": triton}, up=False) as sidecar, EngineClient(triton.target) as client:
        engine = EngineEndpoint(name="e0", target=triton.target)
        prober = Prober(sidecar.driver, engine, client, lambda *change: changes.append(change))
        assert prober.health == EngineProbes(up=False, reason="not probed yet", since_s=prober.health.since_s)
        task = asyncio.create_task(prober.run())
        await sidecar.until(lambda: prober.health.reason.startswith("Request for unknown model"))
        await sidecar.until(lambda: triton.probes > 5)
        triton.refused_stops.clear()
        await sidecar.until(lambda: prober.up)
        task.cancel()
        await asyncio.wait((task,))
    assert changes == [("e0", False, "Request for unknown model: 'x' is not found"), ("e0", True, "")]


async def test_another_reason_is_told_again_but_not_with_every_probe(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[tuple[str, bool, str]] = []
    async with running_sidecar({"e0": triton}, up=False) as sidecar, EngineClient(triton.target) as client:
        engine = EngineEndpoint(name="e0", target=triton.target)
        prober = Prober(sidecar.driver, engine, client, lambda *change: changes.append(change))
        for reason in ("refused", "refused", "wrong model"):
            prober._judge(reason)
        assert changes == [("e0", False, "refused")]
        assert prober.health.reason == "wrong model"
        monkeypatch.setattr(probes, "SAY_AGAIN_S", 0.0)
        prober._judge("no such model")
        assert changes == [("e0", False, "refused"), ("e0", False, "no such model")]


async def test_an_engine_smaller_than_the_settings_say_gets_no_work_until_it_is_larger(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "PERIOD_S", 0.001)
    async with running_sidecar({"e0": triton}, up=False) as sidecar, EngineClient(triton.target) as client:
        prober = Prober(
            sidecar.driver, EngineEndpoint(name="e0", target=triton.target, slots=16), client, lambda *_: None
        )
        task = asyncio.create_task(prober.run())
        await sidecar.until(lambda: prober.health.reason.startswith("slots is 16, but the engine runs at most 8"))
        assert not sidecar.driver.scheduler.snapshot().engines["e0"].up
        triton.sequences_max = 64
        await sidecar.until(lambda: prober.up)
        task.cancel()
        await asyncio.wait((task,))


async def test_a_gauge_that_says_less_than_the_config_takes_the_engine_out_of_service(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probes, "PERIOD_S", 0.001)
    triton.sequences_max = 64
    async with running_sidecar({"e0": triton}, up=False) as sidecar, EngineClient(triton.target) as client:
        prober = Prober(
            sidecar.driver, EngineEndpoint(name="e0", target=triton.target, slots=16), client, lambda *_: None
        )
        task = asyncio.create_task(prober.run())
        await sidecar.until(lambda: prober.up)
        assert caplog.text.count("slots is 16 of the 64 sequences that the engine runs at a time") == 1
        prober._scraped(EngineScrape(measured=Measured(engine="e0", ok=True), sequences_max=8))
        await sidecar.until(lambda: not prober.up)
        assert 'at most 8 sequences at a time (its gauge request_type="max")' in prober.health.reason
        task.cancel()
        await asyncio.wait((task,))


async def test_an_engine_whose_config_is_restricted_comes_up_all_the_same(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton.key = ("triton-grpc-protocol-admin-key", "secret")
    triton.sequences_max = 1
    async with running_sidecar({"e0": triton}, up=False) as sidecar, EngineClient(triton.target) as client:
        monkeypatch.setattr(client, "stop", _answers)
        prober = Prober(sidecar.driver, EngineEndpoint(name="e0", target=triton.target), client, lambda *_: None)
        task = asyncio.create_task(prober.run())
        await sidecar.until(lambda: prober.up)
        task.cancel()
        await asyncio.wait((task,))


async def _answers(*_: object) -> None:
    """A stop that gets through."""


async def test_an_engine_that_answers_probes_and_gives_nobody_a_token_is_down_and_says_why(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "PERIOD_S", 0.001)
    counter: Iterator[int] = repeat(1234)

    async with (
        metrics_page(lambda: PAGE.replace("} 7", "} 0").replace("1234", str(next(counter)))) as url,
        running_sidecar({"e0": triton}, progress_timeout_s=0.2) as sidecar,
        EngineClient(triton.target) as client,
    ):
        engine = EngineEndpoint(name="e0", target=triton.target, metrics_url=url)
        prober = Prober(sidecar.driver, engine, client, lambda *_: None)
        task = asyncio.create_task(prober.run())
        await sidecar.until(lambda: prober.up)
        answer = begin(sidecar, call())
        await triton.next()  # and no token ever comes
        await sidecar.until(lambda: not prober.up)
        assert prober.health.reason.startswith("it hangs: no token for 0 s with 1 in flight")
        assert prober.health.reason.endswith("its counter of iterations stands at 1234")
        counter = count(1235)  # it goes on
        await sidecar.until(lambda: prober.up)
        again = await triton.next()
        again.tokens(4, final=True)
        await answer
        task.cancel()
        await asyncio.wait((task,))


@asynccontextmanager
async def metrics_page(text: Callable[[], str]) -> AsyncIterator[str]:
    """The address of a metrics page that says `text()`."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=text())

    application = web.Application()
    application.router.add_get("/metrics", page)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
    await runner.cleanup()


async def test_a_fault_of_a_probe_is_a_reason_to_be_down_and_no_end(triton: FakeTriton) -> None:
    class Broken(EngineClient):
        async def stop(self, model: str, request_id: str, timeout_s: float) -> None:
            raise KeyError(model, request_id, timeout_s)

    async with running_sidecar({"e0": triton}, up=False) as sidecar, Broken(triton.target) as client:
        prober = Prober(sidecar.driver, EngineEndpoint(name="e0", target=triton.target), client, lambda *_: None)
        task = asyncio.create_task(prober.run())
        await sidecar.until(lambda: prober.health.reason == "the probe failed: KeyError")
        task.cancel()
        await asyncio.wait((task,))


async def test_a_block_size_that_the_gauges_contradict_is_said_once_and_kept(
    triton: FakeTriton, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_sidecar({"e0": triton}) as sidecar, EngineClient(triton.target) as client:
        engine = EngineEndpoint(name="e0", target=triton.target, kv_block_tokens=32)
        prober = Prober(sidecar.driver, engine, client, lambda *_: None)
        for tokens in (None, 64, 64, None):  # None: the engine does not iterate yet, or a scrape failed
            prober._measured(Measured(engine="e0", ok=True, tokens_per_block=tokens))
        assert "kv_block_tokens is 32 in the settings" in prober.block_fault
        assert caplog.text.count(prober.block_fault) == 1
        assert sidecar.driver.scheduler.block_tokens("e0") == 64
        prober._measured(Measured(engine="e0", ok=True, tokens_per_block=32))
        assert prober.block_fault == ""


async def test_why_nothing_is_cut_into_slices_is_said_once_and_so_is_that_it_is_again(
    triton: FakeTriton, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", logger=probes.__name__)
    async with running_sidecar({"e0": triton}) as sidecar, EngineClient(triton.target) as client:
        prober = Prober(sidecar.driver, EngineEndpoint(name="e0", target=triton.target), client, lambda *_: None)
        for factor, hit in ((1, 1.0), (2, 0.8), (0, 0.12), (0, 0.25), (8, 0.95), (4, 0.99)):
            monkeypatch.setattr(sidecar.driver.scheduler, "reuse_of", lambda _engine, found=(factor, hit): found)
            prober._look_at_reuse()
            assert bool(prober.slices_off) is (factor == 0)
    told = [record.getMessage() for record in caplog.records if record.name == probes.__name__]
    assert [each.split(":")[1] for each in told] == [
        " offline items run in one piece, and their prompts too",
        " offline items run in slices again",
    ]
    assert "only 12% was still in the KV cache" in told[0]


async def test_load_that_is_not_ours_is_said_and_counted(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pages = [PAGE, PAGE.replace("} 7", "} 0")]
    scrapes = 0

    def text() -> str:
        nonlocal scrapes
        scrapes += 1
        return pages[0].replace("} 1234", f"}} {scrapes}")  # an engine with a request iterates

    monkeypatch.setattr(probes, "PERIOD_S", 0.01)
    caplog.set_level("INFO", logger=probes.__name__)
    async with (
        metrics_page(text) as url,
        running_sidecar({"e0": triton}) as sidecar,
        EngineClient(triton.target) as client,
    ):
        engine = EngineEndpoint(name="e0", target=triton.target, metrics_url=url)
        task = asyncio.create_task(Prober(sidecar.driver, engine, client, lambda *_: None).run())
        await sidecar.until(lambda: "7 slots are in use that are not ours" in caplog.text)
        assert sidecar.driver.scheduler.snapshot().engines["e0"].foreign_slots == 7
        await sidecar.until(lambda: scrapes > 10)  # it stays so for some of them
        pages.pop(0)
        await sidecar.until(lambda: "no slot is in use that is not ours" in caplog.text)
        task.cancel()
        await asyncio.wait((task,))
    assert caplog.text.count("that are not ours") == 1  # said once, however often it is seen
