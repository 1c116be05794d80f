"""`sidecar serve` as a child process: ready or an error with its last words, drained cleanly or an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dev.broker import free_ports
from dev.server import ServerError, SidecarProcess, serving

PROGRAM = """
import asyncio, signal, sys
from aiohttp import web
import yaml

settings = yaml.safe_load(open(sys.argv[sys.argv.index("--config") + 1]))
if settings.get("broken"):
    sys.exit("engines: no such thing")

async def ready(_): return web.Response()
async def status(_): return web.json_response({"state": "serving"})

async def main():
    app = web.Application()
    app.add_routes([web.get("/readyz", ready), web.get("/status.json", status)])
    runner = web.AppRunner(app)
    await runner.setup()
    host, port = settings["http"].split(":")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await web.TCPSite(runner, host, int(port)).start()
    await stop.wait()
    await runner.cleanup()
    sys.exit(settings.get("exit", 0))

asyncio.run(main())
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program that answers as a sidecar does, found by its name."""
    (tmp_path / "fake_sidecar.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "fake_sidecar"


def settings(**more: object) -> dict[str, object]:
    listen, http = free_ports(2)
    return {"listen": f"127.0.0.1:{listen}", "http": f"127.0.0.1:{http}", **more}


async def test_a_ready_process_is_asked_drained_and_gone(module: str, tmp_path: Path) -> None:
    async with serving(tmp_path, settings(), (module,)) as server:
        assert await server.status() == {"state": "serving"}
        server.check_alive()
        await server.drain()
        with pytest.raises(ServerError, match="ended with 0"):
            server.check_alive()


async def test_a_block_that_ends_early_leaves_no_process(module: str, tmp_path: Path) -> None:
    async with serving(tmp_path, settings(), (module,)) as server:
        pid = server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_one_that_does_not_start_is_named_with_its_last_words(module: str, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"ended with 1: engines: no such thing"):
        await SidecarProcess.start(tmp_path, settings(broken=True), (module,))


async def test_an_unclean_end_of_a_drain_is_an_error(module: str, tmp_path: Path) -> None:
    async with serving(tmp_path, settings(exit=3), (module,)) as server:
        with pytest.raises(ServerError, match="ended with 3"):
            await server.drain()


async def test_one_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "silent_sidecar.py").write_text("import signal\nwhile True: signal.pause()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("dev.server.START_TIMEOUT_S", 0.05)
    with pytest.raises(ServerError, match="not ready within"):
        await SidecarProcess.start(tmp_path, settings(), ("silent_sidecar",))
