"""One run: real Triton, the sidecar or nothing before it, callers, and what nvidia-smi says meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import statistics
import sys
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dev.broker import free_ports
from dev.gpu.load import CallerOrder
from dev.load import percentiles
from dev.server import SidecarProcess, serving
from dev.triton import Triton

BLOCK_TOKENS = 64  # of the engine; the sidecar counts reused blocks by it
ENGINE = "gpu"
START_S = 2.0  # the callers' processes need over a second to begin


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRun:
    """One run: `policy` is `alone`, `ours`, or a static cap without the sidecar, `cap-16`; `ceiling` has no callers."""

    policy: str
    workload: str
    rate_per_s: float
    seconds: float
    warm_s: float = 6.0  # 64 slots took five seconds to fill on an H100
    patience_s: float = 30.0

    @property
    def cap(self) -> int | None:
        return int(self.policy.removeprefix("cap-")) if self.policy.startswith("cap-") else None


class CardWatch:
    """What nvidia-smi says five times a second; nothing where there is none."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float, float]] = []

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Sample in the block."""
        if shutil.which("nvidia-smi") is None:
            yield
            return
        query = "--query-gpu=utilization.gpu,power.draw,memory.used"
        process = await asyncio.create_subprocess_exec(
            *("nvidia-smi", query, "--format=csv,noheader,nounits", "-lms", "200"), stdout=asyncio.subprocess.PIPE
        )
        reader = asyncio.create_task(self._read(process.stdout), name="nvidia-smi")
        try:
            yield
        finally:
            process.terminate()
            reader.cancel()
            await process.wait()

    async def _read(self, lines: Any) -> None:
        async for line in lines:
            with contextlib.suppress(ValueError):
                utilisation, watts, mib = map(float, line.decode().split(","))
                self.samples.append((time.monotonic(), utilisation, watts, mib))

    def means(self, begin_s: float, end_s: float) -> dict[str, float] | None:
        """Return the means of what was seen between both moments."""
        found = [sample[1:] for sample in self.samples if begin_s <= sample[0] <= end_s]
        if not found:
            return None
        names = ("utilisation_percent", "watts", "memory_mib")
        return {
            name: round(statistics.mean(each), 1) for name, each in zip(names, zip(*found, strict=True), strict=True)
        }


class CallerProcess:
    """A process of dev.gpu.load."""

    def __init__(self, order: CallerOrder, log: Path) -> None:
        self.order, self._log = order, log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "dev.gpu.load"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=2**28,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(self.order)).encode() + b"\n")

    async def result(self) -> dict[str, Any]:
        """Wait for what it says at its end; an offline one ends when told."""
        assert self._process is not None
        if self.order.lane == "offline":
            self._process.terminate()
        out, _ = await self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"the {self.order.lane} callers ended with {self._process.returncode}: see {self._log}")
        found: dict[str, Any] = json.loads(out)
        return found

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


async def run(plan: CardRun, triton: Triton, directory: Path) -> dict[str, Any]:
    """Return the figures of one run with its files in `directory`; the server goes on, callers and sidecar end."""
    async with contextlib.AsyncExitStack() as stack:
        sidecar, target = None, triton.target
        if plan.cap is None:
            sidecar = await stack.enter_async_context(serving(directory, settings(triton)))
            target = sidecar.listen
        watch = CardWatch()
        await stack.enter_async_context(watch.watching())
        start_s = time.monotonic() + START_S + plan.warm_s
        callers = {
            order.lane: CallerProcess(order, directory / "callers.log")
            for order in orders(plan, target, triton, start_s)
        }
        for each in callers.values():
            stack.callback(each.kill)
            await each.start()
        await asyncio.sleep(start_s - time.monotonic())
        begin, statuses = await _status(sidecar), asyncio.create_task(_sampled(sidecar, plan.seconds), name="statuses")
        await asyncio.sleep(start_s + plan.seconds - time.monotonic())
        end, end_s = await _status(sidecar), time.monotonic()
        online = await callers["online"].result() if "online" in callers else None
        offline = await callers["offline"].result() if "offline" in callers else None
        figures: dict[str, Any] = {**asdict(plan), "gpu": watch.means(start_s, end_s)}
        if online is not None:
            figures["online"] = online_figures(online)
        if offline is not None:
            tokens = sum(count for at_s, count in offline["heard"] if start_s <= at_s <= end_s)
            if begin is not None and end is not None:  # its own count is exact at both ends
                tokens = end["output_tokens"]["offline"] - begin["output_tokens"]["offline"]
            figures["offline_tokens_per_s"] = round(tokens / (end_s - start_s), 1)
            figures["offline_errors"] = offline["errors"]
        figures["sidecar"] = sidecar_figures(await statuses)
    return figures


def orders(plan: CardRun, target: str, triton: Triton, start_s: float) -> list[CallerOrder]:
    """Return what the processes of this run send."""
    seed = zlib.crc32(f"{plan.policy} {plan.workload}".encode())
    found = []
    if plan.policy != "ceiling":
        found.append(
            CallerOrder(
                target=target,
                lane="online",
                workload=plan.workload,
                start_s=start_s,
                seed=seed,
                rate_per_s=plan.rate_per_s,
                seconds=plan.seconds,
                warm_s=plan.warm_s,
                patience_s=plan.patience_s,
            )
        )
    if plan.policy != "alone":
        found.append(
            CallerOrder(
                target=target,
                lane="offline",
                workload=plan.workload,
                start_s=start_s,
                seed=seed + 1,
                outstanding=plan.cap or 3 * triton.settings.slots,
                through_sidecar=plan.cap is None,
            )
        )
    return found


def settings(triton: Triton) -> dict[str, Any]:
    """Return the sidecar's settings: its defaults, without Kafka; offline work comes by gRPC."""
    listen, http = free_ports(2)
    return {
        "listen": f"127.0.0.1:{listen}",
        "http": f"127.0.0.1:{http}",
        "tokenizer": str(triton.tokenizer),
        "engines": [
            {
                "name": ENGINE,
                "target": triton.target,
                "metrics_url": triton.metrics_url,
                "slots": triton.settings.slots,
                "tokens_max": int(triton.settings.parameters["max_seq_len"]),
                "kv_block_tokens": BLOCK_TOKENS,
            }
        ],
    }


async def _status(sidecar: SidecarProcess | None) -> dict[str, Any] | None:
    if sidecar is None:
        return None
    found: dict[str, Any] = (await sidecar.status())["engines"][ENGINE]
    return found


async def _sampled(sidecar: SidecarProcess | None, seconds: float) -> list[dict[str, Any]]:
    """Return the engine's part of the status, twice a second."""
    found = []
    for _ in range(int(2 * seconds) if sidecar is not None else 0):
        with contextlib.suppress(Exception):  # a look that fails costs one sample
            found.append(await _status(sidecar))
        await asyncio.sleep(0.5)
    return [each for each in found if each is not None]


def online_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Return the latencies of one run; `each` is for the pairs."""
    good = [each for each in result["requests"] if not each["error"]]
    return {
        "due": result["due"],
        "answered": len(good),
        "errors": sorted({each["error"] for each in result["requests"] if each["error"]}),
        "short": sum(each["tokens"] != each["wanted"] for each in good),
        **{name: spread([each[name] for each in good]) for name in ("ttft_ms", "e2e_ms")},
        "gap_ms": spread([gap for each in good for gap in each["gaps_ms"]]),
        "late_max_ms": round(max((each["late_ms"] for each in result["requests"]), default=0.0), 1),
        "each": {each["number"]: [round(each["ttft_ms"], 1), round(each["e2e_ms"], 1)] for each in good},
    }


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and the percentiles."""
    return {"mean": round(statistics.mean(values), 2) if values else None, **percentiles(values)}


def sidecar_figures(samples: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the means of slots, and the last state of what only grows."""
    if not samples:
        return None
    names = ("slots_online", "slots_offline", "slots_draining")
    last = samples[-1]
    kept = (
        "limit_binding",
        "reuse_ratio",
        "resumed_tokens",
        "recomputed_tokens",
        "preemptions",
        "yields",
        "attribution",
    )
    return {name: round(statistics.mean(each[name] for each in samples), 2) for name in names} | {
        name: last[name] for name in kept if name in last
    }


def paired(one: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any] | None:
    """Return by how much each request took longer than the same one without offline work."""
    numbers = [number for number in one["each"] if number in alone["each"]]
    if not numbers:
        return None
    found: dict[str, Any] = {"pairs": len(numbers)}
    for column, name in enumerate(("ttft", "e2e")):
        mine, theirs = ([run["each"][number][column] for number in numbers] for run in (one, alone))
        found[f"{name}_added_ms"] = spread([a - b for a, b in zip(mine, theirs, strict=True)])
        found[f"{name}_ratio"] = {
            name: round(value / spread(theirs)[name], 3)  # type: ignore[operator]
            for name, value in spread(mine).items()
            if value is not None and spread(theirs)[name]
        }
    return found
