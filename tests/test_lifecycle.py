"""The life of the process: its signals and its end."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml

from dev.broker import free_ports
from dev.server import SidecarProcess, serving
from sidecar.lifecycle import ENDED_AT_ONCE, FILES_WANTED, Signals, prepare_for_many_connections
from sidecar.triton import wire
from sidecar.triton.client import SERVICE
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_of, ids_request


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_closes_and_the_second_ends_the_wait(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.lifecycle.AT_ONCE_S", 3600.0)
    signals = Signals()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(signals.closing.wait(), 5)
    assert signals.drained
    never = asyncio.ensure_future(for_ever())
    os.kill(os.getpid(), number)
    assert not await asyncio.wait_for(signals.done_before_the_second(never), 5)
    assert not never.done()
    never.cancel()
    forget_handlers()


async def test_a_drain_that_ends_by_itself_was_one() -> None:
    signals = Signals()
    done = asyncio.ensure_future(asyncio.sleep(0))
    assert await signals.done_before_the_second(done)
    forget_handlers()


async def test_sighup_reads_the_settings_again_and_ends_nothing() -> None:
    heard = asyncio.Event()
    signals = Signals(heard.set)
    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.wait_for(heard.wait(), 5)
    assert not signals.closing.is_set()
    forget_handlers()


async def for_ever() -> None:
    await asyncio.Event().wait()


def forget_handlers() -> None:
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().remove_signal_handler(each)


def test_as_many_files_may_be_open_as_the_process_may_have() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        prepare_for_many_connections()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == (FILES_WANTED if hard < 0 else min(hard, FILES_WANTED))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# ---- a whole process -------------------------------------------------------------------------------------------------


def settings_for(triton: FakeTriton, **more: Any) -> dict[str, Any]:
    listen, http = free_ports(2)
    engine = {"name": "e0", "target": triton.target, "slots": 2, "tokens_max": 64, "yield_rows": "never"}
    return {"engines": [engine], "listen": f"127.0.0.1:{listen}", "http": f"127.0.0.1:{http}", **more}


async def begun(channel: grpc.aio.Channel, triton: FakeTriton) -> tuple[Any, Any]:
    """A stream whose request runs, and that request."""
    stream: Any = channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer",
        request_serializer=wire.InferRequest.SerializeToString,
        response_deserializer=wire.StreamResponse.FromString,
    )()
    await stream.write(ids_request("u"))
    return stream, await triton.next()


async def until_draining(sidecar: SidecarProcess) -> None:
    async with asyncio.timeout(10):
        while (await sidecar.status())["state"] != "draining":  # noqa: ASYNC110 - a state of another process
            await asyncio.sleep(0.02)


async def test_one_sigterm_waits_for_what_runs_and_the_second_ends_it_at_once(
    triton: FakeTriton, tmp_path: Path
) -> None:
    settings = settings_for(triton, drain_timeout_s=3600)
    async with (
        serving(tmp_path, settings) as sidecar,
        grpc.aio.insecure_channel(sidecar.listen) as channel,
    ):
        stream, request = await begun(channel, triton)
        sidecar.signal(signal.SIGTERM)
        await until_draining(sidecar)
        request.tokens(4)
        assert ids_of(await stream.read()) == (4,)  # it goes on
        sidecar.signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await sidecar.ended() == ENDED_AT_ONCE
            assert await stream.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert "without draining" in sidecar.log.read_text()


async def test_sighup_takes_a_tenants_new_limit_names_what_needs_a_restart_and_refuses_a_mistake(
    triton: FakeTriton, tmp_path: Path
) -> None:
    scheduler = {"tenants": {"default": {"slots_max": 1}}, "window_ms": 0}
    settings = settings_for(triton, scheduler=scheduler, log_format="text")
    async with (
        serving(tmp_path, settings) as sidecar,
        grpc.aio.insecure_channel(sidecar.listen) as channel,
    ):
        stream, first = await begun(channel, triton)
        await stream.write(ids_request("waits"))
        config = tmp_path / "sidecar.yaml"

        async def reloaded(text: str, said: str) -> None:
            config.write_text(text)
            sidecar.signal(signal.SIGHUP)
            async with asyncio.timeout(10):
                while said not in sidecar.log.read_text():  # noqa: ASYNC110 - a file of another process
                    await asyncio.sleep(0.02)

        await reloaded("engines: []", "the settings before stay in force: engines: at least one is needed")
        assert triton.idle
        settings["scheduler"] = {"tenants": {"default": {"slots_max": 2}}, "window_ms": 7}
        changed = "changed: scheduler.tenants.default.slots_max; only a restart changes scheduler.window_ms"
        await reloaded(yaml.safe_dump(settings), changed)
        second = await triton.next()
        for each in (first, second):
            each.tokens(4, final=True)
            await stream.read()
        await stream.done_writing()
        await sidecar.drain()
