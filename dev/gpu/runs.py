"""One run: real Triton, the sidecar or nothing before it, callers, and what nvidia-smi says meanwhile.

Online: the arrivals of a workload of the lab, the same in every run, with other ids in each: in a warm KV cache ids
that came before cost nothing. Latency counts from when a request was due. Offline: the lab's items, so many outstanding
at any time, from a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import shutil
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import yaml

from dev.broker import free_ports
from dev.load import percentiles
from dev.server import serving
from dev.triton import ENGINE_MODEL, Triton
from sidecar.errors import EngineError, StreamBrokenError
from sidecar.sim.workloads import by_name
from sidecar.triton.client import EngineClient, send, token_request
from sidecar.triton.errors import raise_if_error, translated_errors
from sidecar.triton.wire import add_tensor, output_values

BLOCK_TOKENS = 64  # of the engine; the sidecar counts reused blocks by it
START_S = 3.0  # the offline process needs over a second to begin
PATIENCE_S = 30.0
VOCABULARY = (60, 500)  # ids that every model here has, and none of them a marker
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRun:
    """One run: `policy` is `alone`, `ours`, or a static cap without the sidecar, `cap-16`; `ceiling` has no callers."""

    policy: str
    workload: str  # of the lab: `simulate --workload`
    seconds: float
    warm_s: float = 6.0  # 64 slots took five seconds to fill on an H100
    shrink: int = 1  # what lengths are divided by
    settings: tuple[str, ...] = ()  # NAME=VALUE: of the sidecar, beside its defaults

    @property
    def name(self) -> str:
        return " ".join((self.workload, self.policy, *self.settings))


async def ask(
    client: EngineClient, ids: Sequence[int], tokens: int, lane: str, *, streaming: bool
) -> AsyncIterator[int]:
    """Send one request; yield how many tokens each response has. Raises EngineError or StreamBrokenError."""
    request = token_request(ENGINE_MODEL, ids, tokens, f"{random.getrandbits(48):x}")
    add_tensor(request, "streaming", "BOOL", (streaming,), (1, 1))
    add_tensor(request, "exclude_input_in_output", "BOOL", (True,), (1, 1))
    call: Any = client.open([("x-lane", lane)] if lane == "offline" else [])
    with translated_errors(call):
        await send(call, request)
        while (response := await call.read()) is not grpc.aio.EOF:
            raise_if_error(response)
            if count := len(output_values(response.infer_response, "output_ids") or ()):
                yield count


async def online(plan: CardRun, target: str, start_s: float) -> list[dict[str, Any]]:
    """Send what arrives; return each counted request with its latencies."""
    draw, results = random.Random(plan.name), list[dict[str, Any]]()

    async def one(number: int, due_s: float, ids: list[int], wanted: int) -> None:
        await asyncio.sleep(due_s - time.monotonic())
        moments, tokens, error = [due_s], 0, ""
        try:
            async with asyncio.timeout(start_s + plan.seconds + PATIENCE_S - due_s):
                async for count in ask(client, ids, wanted, "online", streaming=True):
                    moments.append(time.monotonic())
                    tokens += count
        except (EngineError, StreamBrokenError, TimeoutError) as found:
            error = f"{type(found).__name__}: {found}"[:160]
        if due_s >= start_s:
            first_ms, *gaps_ms = [round(1e3 * (b - a), 2) for a, b in pairwise(moments)] or [0.0]
            error = error or ("" if tokens == wanted else f"{tokens} of {wanted} tokens")
            latencies = {"ttft_ms": first_ms, "e2e_ms": first_ms + sum(gaps_ms), "gaps_ms": gaps_ms}
            results.append({"number": number, "error": error, **latencies})

    async with EngineClient(target) as client, asyncio.TaskGroup() as tasks:
        jobs = by_name(plan.workload).online(1, (plan.warm_s + plan.seconds) / 3600)
        for number, job in enumerate(jobs if plan.policy != "ceiling" else ()):
            ids = [draw.randrange(*VOCABULARY) for _ in range(job.request.prompt_tokens // plan.shrink + 1)]
            due_s = start_s - plan.warm_s + job.request.arrived_s
            tasks.create_task(one(number, due_s, ids, job.output_tokens // plan.shrink + 1), name=f"online {number}")
    return results


def offline(plan: CardRun, target: str, outstanding: int, streaming: bool, counts: Any) -> None:
    """Keep so many requests outstanding until killed; count the tokens that were heard, and the errors."""
    draw, lengths = random.Random(), by_name(plan.workload).offline(1)

    async def keep_one(client: EngineClient) -> None:
        for prompt, output in lengths:
            ids = [draw.randrange(*VOCABULARY) for _ in range(prompt // plan.shrink + 1)]
            try:
                async for count in ask(client, ids, output // plan.shrink + 1, "offline", streaming=streaming):
                    counts[0] += count
            except (EngineError, StreamBrokenError):
                counts[1] += 1
                await asyncio.sleep(0.2)

    async def keep_all() -> None:
        async with EngineClient(target) as client:
            await asyncio.gather(*(keep_one(client) for _ in range(outstanding)))

    asyncio.run(keep_all())


async def card_means(seconds: float) -> dict[str, float] | None:
    """Wait so long; return the means of what nvidia-smi said meanwhile, five times a second, if there is one."""
    if shutil.which("nvidia-smi") is None:
        await asyncio.sleep(seconds)
        return None
    names = ("utilization.gpu", "power.draw", "memory.used")
    query = ("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits", "-lms", "200")
    process = await asyncio.create_subprocess_exec(*query, stdout=asyncio.subprocess.PIPE)
    try:
        await asyncio.sleep(seconds)
    finally:
        process.terminate()
    lines = (await process.communicate())[0].decode().splitlines()[:-1]  # the last one may be cut
    columns = zip(*(map(float, line.split(",")) for line in lines), strict=True)
    return {name: round(statistics.mean(each), 1) for name, each in zip(names, columns, strict=True)}


async def run(plan: CardRun, triton: Triton, directory: Path) -> dict[str, Any]:
    """Return the figures of one run with its files in `directory`; the server goes on, callers and sidecar end."""
    figures: dict[str, Any] = asdict(plan)
    counts = SPAWN.Array("L", 2)
    async with contextlib.AsyncExitStack() as stack:
        sidecar, target, outstanding = None, triton.target, 3 * triton.settings.slots
        if plan.policy.startswith("cap-"):
            outstanding = int(plan.policy.removeprefix("cap-"))
        else:
            figures["sidecar"] = settings(triton, plan.settings)
            sidecar = await stack.enter_async_context(serving(directory, figures["sidecar"]))
            target = sidecar.listen
        if plan.policy != "alone":
            arguments = (plan, target, outstanding, sidecar is None, counts)
            process = SPAWN.Process(target=offline, args=arguments, daemon=True)
            process.start()
            stack.callback(process.kill)
        start_s = time.monotonic() + START_S + plan.warm_s
        callers = asyncio.create_task(online(plan, target, start_s), name="online callers")
        stack.callback(callers.cancel)

        async def tokens() -> int:
            """How many offline has had: by the sidecar's own count, which is exact, or as heard."""
            if sidecar is None:
                return int(counts[0])
            (figures["engine"],) = (await sidecar.status())["engines"].values()
            return int(figures["engine"]["output_tokens"]["offline"])

        await asyncio.sleep(start_s - time.monotonic())
        begin, begin_s = await tokens(), time.monotonic()
        figures["gpu"] = await card_means(plan.seconds)
        rate = (await tokens() - begin) / (time.monotonic() - begin_s)
        figures["online"] = online_figures(await callers)
    if plan.policy != "alone":
        figures |= {"offline_tokens_per_s": round(rate, 1), "offline_errors": counts[1]}
    return figures


def settings(triton: Triton, more: Sequence[str]) -> dict[str, Any]:
    """Return the sidecar's settings: its defaults, without Kafka, and NAME=VALUE; offline work comes by gRPC."""
    listen, http = (f"127.0.0.1:{port}" for port in free_ports(2))
    engine: dict[str, Any] = {"name": "gpu", "target": triton.target, "metrics_url": triton.metrics_url}
    engine |= {"slots": triton.settings.slots, "tokens_max": int(triton.settings.parameters["max_seq_len"])}
    engine |= {"kv_block_tokens": BLOCK_TOKENS}
    found: dict[str, Any] = {"listen": listen, "http": http, "tokenizer": str(triton.tokenizer), "engines": [engine]}
    for name, _, value in (each.partition("=") for each in more):
        *sections, last = name.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = yaml.safe_load(value)
    return found


def online_figures(requests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the latencies of one run; `each` is for the pairs."""
    good = {each["number"]: each for each in requests if not each["error"]}
    return {
        "due": len(requests),
        "errors": sorted({each["error"] for each in requests} - {""}),
        **{name: spread([each[name] for each in good.values()]) for name in ("ttft_ms", "e2e_ms")},
        "gap_ms": spread([gap for each in good.values() for gap in each["gaps_ms"]]),
        "each": {number: {name: each[name] for name in ("ttft_ms", "e2e_ms")} for number, each in good.items()},
    }


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and the percentiles."""
    return {"mean": round(statistics.mean(values), 2) if values else None, **percentiles(values)}


def paired(one: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """Return by how much each request took longer than the same one without offline work."""
    pairs = [(each, alone["each"][number]) for number, each in one["each"].items() if number in alone["each"]]
    found: dict[str, Any] = {"pairs": len(pairs)}
    for name in ("ttft_ms", "e2e_ms") if pairs else ():
        added, base = [mine[name] - theirs[name] for mine, theirs in pairs], sum(theirs[name] for _, theirs in pairs)
        found[name] = {"added": spread(added), "ratio": round(1 + sum(added) / base, 3)}
    return found
