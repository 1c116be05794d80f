"""Breaks what stands before and behind the callers' port, and tells what well-behaved callers saw.

    scripts/chaos --front [--seconds S] [--only FAULT,…] [--seed N] [--out docs/faults.md]

A sidecar process before an engine process that can misbehave (`front_engine.py`), callers who do not behave in a third
(`front_abuse.py`), and two who do, all the time: one request after the other, as another tenant. Spans go to a
collector that never answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from dev.broker import free_ports
from dev.front_abuse import KINDS, request
from dev.front_engine import MODE, MODES, SLOTS
from dev.interrupt import run_until_told
from dev.server import SidecarProcess, serving
from sidecar.triton import wire
from sidecar.triton.client import SERVICE

CALLERS = 2  # of eight slots
TOKENS = 8
CALL_TIMEOUT_S = 30.0  # what takes longer hangs
HEALED = 4  # good answers in a row
HEAL_S = 60.0
BASELINE_S = 5.0
FIELDS = ("fault", "callers saw", "p99", "lost", "healed after", "RSS", "tasks", "the others got")


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """One call of a well-behaved caller."""

    begun_s: float
    took_s: float
    # A gRPC status; "error" for a message that holds one, "wrong" for an answer that is none, "hangs" for none in time.
    status: str


class GoodCallers:
    """Well-behaved callers: one request after the other, without a pause, until told."""

    def __init__(self, address: str) -> None:
        self.calls: list[Called] = []
        self._address = address
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> GoodCallers:
        self._tasks = [asyncio.create_task(self._call_on(), name="good caller") for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _call_on(self) -> None:
        async with grpc.aio.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            ask: Any = channel.stream_stream(
                f"/{SERVICE}/ModelStreamInfer",
                request_serializer=wire.InferRequest.SerializeToString,
                response_deserializer=wire.StreamResponse.FromString,
            )
            while not self._over:
                begun_s = time.monotonic()
                status = await _status_of(ask)
                self.calls.append(Called(begun_s=begun_s, took_s=time.monotonic() - begun_s, status=status))
                if status != "OK":
                    await asyncio.sleep(0.1)  # as a client's back-off

    async def healed_after(self, since_s: float) -> float | None:
        """In how many seconds good answers came in a row again, of calls that began after `since_s`; None = never."""
        while time.monotonic() < since_s + HEAL_S:
            after = [each for each in self.calls if each.begun_s >= since_s]
            for at in range(len(after) - HEALED + 1):
                if all(each.status == "OK" for each in after[at : at + HEALED]):
                    return after[at].begun_s + after[at].took_s - since_s
            await asyncio.sleep(0.05)
        return None


async def _status_of(ask: Any) -> str:
    call, tokens = ask(metadata=(("triton_grpc_error", "true"), ("x-tenant", "good")), timeout=CALL_TIMEOUT_S), 0
    try:
        await call.write(request("good", output=TOKENS))
        await call.done_writing()
        async for answer in call:
            if answer.error_message:
                return "error"
            tokens += len(wire.output_values(answer.infer_response, "output_ids") or ())
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        code = (await call.code()).name
        return "hangs" if code == "DEADLINE_EXCEEDED" else str(code)
    return "OK" if tokens == TOKENS else "wrong"


@dataclass(slots=True)
class FrontScene:
    """What runs: the engine, the sidecar before it, and how it was at rest."""

    sidecar: SidecarProcess
    engine_ports: tuple[int, int]
    engine: asyncio.subprocess.Process
    seconds: float
    seed: int
    p99_s: float = 0.0
    tasks: int = 0
    rss_mib: float = 0.0
    others: Counter[str] = field(default_factory=Counter)

    async def set_mode(self, mode: str) -> None:
        """The engine is like this from now on."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.engine_ports[0]}") as channel:
            set_it: Any = channel.unary_unary(MODE)
            await set_it(mode.encode(), wait_for_ready=True, timeout=20)

    async def start_engine(self) -> None:
        """The engine runs, anew."""
        self.engine = await engine_process(*self.engine_ports)
        await self.set_mode("")

    async def at_rest(self) -> tuple[int, float]:
        """Tasks and MiB of the sidecar once nothing is in flight and nobody waits."""
        async with asyncio.timeout(HEAL_S):
            while True:
                status = await self.sidecar.status()
                waiting = sum(each["waiting"] for each in status["lanes"])
                if not status["in_flight"] and not waiting and status["tasks"] <= (self.tasks or status["tasks"]) + 2:
                    return status["tasks"], rss_mib(self.sidecar.pid)
                await asyncio.sleep(0.1)


def rss_mib(pid: int) -> float:
    """What the process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


async def engine_process(*ports: int) -> asyncio.subprocess.Process:
    """A new engine."""
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "dev.front_engine", *map(str, ports))


# ---- faults ----------------------------------------------------------------------------------------------------------


def abuse(kind: str) -> Callable[[FrontScene], Awaitable[None]]:
    """Callers of this kind, for as long as the fault lasts."""

    async def fault(scene: FrontScene) -> None:
        arguments = (kind, scene.sidecar.listen, str(scene.seconds), str(scene.seed))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dev.front_abuse", *arguments, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(scene.seconds + 150):
            out, _ = await process.communicate()
        scene.others.update(json.loads(out))

    return fault


def misbehaving(mode: str) -> Callable[[FrontScene], Awaitable[None]]:
    """The engine in this mode."""

    async def fault(scene: FrontScene) -> None:
        await scene.set_mode(mode)
        await asyncio.sleep(scene.seconds)
        await scene.set_mode("")

    return fault


async def dies_in_stop(scene: FrontScene) -> None:
    """The engine dies when it is told to stop a request that its caller has cancelled."""
    await scene.set_mode("dies_in_stop")
    async with grpc.aio.insecure_channel(scene.sidecar.listen) as channel:
        call: Any = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer", request_serializer=wire.InferRequest.SerializeToString
        )()
        await call.write(request("doomed", output=1_000))
        await call.read()
        call.cancel()
        await asyncio.wait_for(scene.engine.wait(), 20)
    await asyncio.sleep(scene.seconds / 4)
    await scene.start_engine()


async def engine_killed(scene: FrontScene) -> None:
    """SIGKILL of the engine, which starts again later."""
    scene.engine.kill()
    await scene.engine.wait()
    await asyncio.sleep(scene.seconds / 4)
    await scene.start_engine()


async def engine_stopped(scene: FrontScene) -> None:
    """SIGSTOP of the engine, then SIGCONT."""
    scene.engine.send_signal(signal.SIGSTOP)
    await asyncio.sleep(scene.seconds)
    scene.engine.send_signal(signal.SIGCONT)


async def disk_full(scene: FrontScene) -> None:
    """No file of the sidecar may grow any more: the recorder's disk is full."""
    soft, hard = resource.prlimit(scene.sidecar.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(scene.sidecar.pid, resource.RLIMIT_FSIZE, (scene.sidecar.log.stat().st_size + 4096, hard))
    await asyncio.sleep(scene.seconds)
    scene.others[f"recorder: {(await scene.sidecar.status())['recorder']['state']}"] += 1
    resource.prlimit(scene.sidecar.pid, resource.RLIMIT_FSIZE, (soft, hard))


FAULTS: dict[str, tuple[str, Callable[[FrontScene], Awaitable[None]]]] = {
    **{kind: ((do.__doc__ or "").strip(), abuse(kind)) for kind, do in KINDS.items()},
    "engine killed": ("SIGKILL of the engine; it starts again.", engine_killed),
    "engine stopped": ("SIGSTOP of the engine, then SIGCONT.", engine_stopped),
    "engine dies in a stop": (f"{MODES['dies_in_stop']}.", dies_in_stop),
    **{
        f"engine: {mode}": (f"{said}.", misbehaving(mode))
        for mode, said in MODES.items()
        if mode not in ("", "dies_in_stop")
    },
    "disk full": ("No file of the sidecar may grow: the recorder's disk is full.", disk_full),
}


async def tried(scene: FrontScene, name: str) -> dict[str, str]:
    """One fault, and the row that tells of it."""
    scene.others.clear()
    async with GoodCallers(scene.sidecar.listen) as good:
        await asyncio.sleep(0.5)
        begun_s = time.monotonic()
        await FAULTS[name][1](scene)
        ended_s = time.monotonic()
        healed_s = await good.healed_after(ended_s)
    scene.sidecar.check_alive()
    tasks, mib = await scene.at_rest()
    during = [each for each in good.calls if begun_s <= each.begun_s + each.took_s and each.begun_s <= ended_s]
    return row(scene, name, during, healed_s, tasks, mib)


def row(
    scene: FrontScene, name: str, during: Sequence[Called], healed_s: float | None, tasks: int, mib: float
) -> dict[str, str]:
    """One line of the table. A call is lost if it hung, or if its answer was none."""
    statuses = Counter(each.status for each in during)
    answered = sorted(each.took_s for each in during if each.status == "OK")
    p99 = f"{answered[int(0.99 * (len(answered) - 1))] / scene.p99_s:.2f}×" if len(answered) >= 20 else "–"
    values = (
        name,
        _counts(statuses),
        p99,
        str(statuses["hangs"]),
        "never" if healed_s is None else f"{healed_s:.1f} s",
        f"{mib - scene.rss_mib:+.0f} MiB",
        f"{tasks - scene.tasks:+d}",
        _counts(scene.others) or "–",
    )
    return dict(zip(FIELDS, values, strict=True))


def _counts(found: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in found.most_common())


@contextlib.asynccontextmanager
async def scene_of(seconds: float, seed: int) -> AsyncIterator[FrontScene]:
    """Everything runs, has been measured at rest, and is gone after the block."""
    listen, http, *ports = free_ports(4)
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as silent:
        directory = Path(name)
        settings = {
            "listen": f"127.0.0.1:{listen}",
            "http": f"127.0.0.1:{http}",
            "engines": [
                {
                    "name": "e0",
                    "target": f"127.0.0.1:{ports[0]}",
                    "metrics_url": f"http://127.0.0.1:{ports[1]}/metrics",
                    "text_model": None,
                    "slots": SLOTS,
                    "tokens_max": 131_072,
                }
            ],
            "scheduler": {"tenants": {"abuser": {"slots_max": SLOTS - CALLERS}}},
            "progress_timeout_s": 3.0,  # a minute by default: a row would take as long
            "recorder": {"directory": str(directory / "decisions")},
            "tracing": {"endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}"},
        }
        engine = await engine_process(*ports)
        try:
            async with serving(directory, settings) as sidecar:
                scene = FrontScene(
                    sidecar=sidecar, engine_ports=(ports[0], ports[1]), engine=engine, seconds=seconds, seed=seed
                )
                async with GoodCallers(sidecar.listen) as good:
                    await asyncio.sleep(BASELINE_S)
                took = sorted(each.took_s for each in good.calls if each.status == "OK")
                scene.p99_s = took[int(0.99 * (len(took) - 1))]
                scene.tasks, scene.rss_mib = await scene.at_rest()
                yield scene
                engine = scene.engine
        finally:
            with contextlib.suppress(ProcessLookupError):
                engine.kill()


def page(rows: Sequence[dict[str, str]], scene: str) -> str:
    """docs/faults.md."""
    lines = [
        "# What was done to the callers' port, and what callers saw",
        "",
        "Made by `scripts/chaos --front`: two well-behaved callers send one request of eight tokens after the other,",
        "always, while one thing goes wrong. Before and behind the sidecar are processes of the workshop's own",
        "(`dev/front_abuse.py`, `dev/front_engine.py`), and its spans go to a collector that never answers.",
        "`p99` is their time from end to end against that of a quiet time in the same run; `lost` are calls without an",
        "end within 30 s; `healed after` is from the end of the fault to the first of four good answers in a row.",
        "Callers who do not behave are one tenant that may have six of the eight slots (`slots_max`): no slot is taken",
        "back from an online request, and without that limit a tenant of long requests would hold all of them.",
        "Where p99 is high the one event loop binds: a request costs it some 2 ms of CPU, so 5,000 cancels or 2,000",
        "streams at once are seconds of work, and a message of 64 MiB holds it for 0.2 s (`limits.message_bytes_max`).",
        "RSS and tasks are those of the sidecar when all is over, against those before the first fault.",
        "What Kafka does wrong is in [chaos.md](chaos.md), odd messages are in [fuzz.md](fuzz.md).",
        "",
        scene,
        "",
        f"| {' | '.join(FIELDS)} |",
        f"|{'---|' * len(FIELDS)}",
        *(f"| {' | '.join(each[name] for name in FIELDS)} |" for each in rows),
        "",
        "| fault | what it is |",
        "|---|---|",
        *(f"| {each['fault']} | {FAULTS[each['fault']][0]} |" for each in rows),
        "",
    ]
    return "\n".join(lines)


async def main(options: argparse.Namespace) -> int:
    """Try each fault, print the table, and say by the exit code whether something hung, stayed or never healed."""
    names = options.only.split(",") if options.only else list(FAULTS)
    async with scene_of(options.seconds, options.seed) as scene:
        rows = []
        for name in names:
            rows.append(await tried(scene, name))
            print("  ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
        await scene.sidecar.drain()
        said = (
            f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores that others used too, Python"
            f" {platform.python_version()}, {options.seconds:g} s for each fault, seed {options.seed};"
            f" quiet p99 {scene.p99_s * 1000:.0f} ms."
        )
    text = page(rows, said)
    if options.out is not None:
        options.out.write_text(text)
    print(text)
    bad = [each["fault"] for each in rows if each["lost"] != "0" or each["healed after"] == "never"]
    print("\n".join(f"BROKEN: {each}" for each in bad) or "nothing hung, and all healed")
    return 1 if bad else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/chaos --front", description=__doc__)
    parser.add_argument("--front", action="store_true", help="this kind of chaos")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each fault (%(default)s)")
    parser.add_argument("--only", default="", metavar="FAULT,…", help="some of the faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there")
    sys.exit(run_until_told(main(parser.parse_args())))
