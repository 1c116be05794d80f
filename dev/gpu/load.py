"""The callers of a run, in a process of their own: python -m dev.gpu.load, with an order as JSON on standard input.

Online: a Poisson stream of prompts and output lengths that are the same in every run, with other ids in each: in a warm
KV cache ids that came before cost nothing. Offline: so many requests outstanding at any time. Latency counts from when
a request was due. The result is one line of JSON on standard output.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import grpc

from sidecar.triton.client import EngineClient, send, token_request
from sidecar.triton.wire import add_tensor, output_values

VOCABULARY = (50, 500)  # ids that every model here has, and none of them a marker
Lengths = tuple[int, int, int]  # median, 99th percentile, most
WORKLOADS: dict[str, tuple[Lengths, Lengths]] = {  # prompt and output tokens of online requests
    "conversation": ((1020, 3800, 4000), (129, 650, 700)),
    "short": ((400, 1100, 1400), (4, 12, 16)),
    "smoke": ((40, 80, 100), (6, 12, 16)),
}
OFFLINE: dict[str, tuple[Lengths, Lengths]] = {
    "items": ((400, 1100, 1400), (120, 600, 512)),
    "smoke": ((40, 80, 100), (20, 60, 64)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerOrder:
    """What one process sends, and where. Moments are of the monotonic clock, which all processes share."""

    target: str
    lane: str
    workload: str
    start_s: float
    seed: int
    rate_per_s: float = 0.0  # online
    seconds: float = 0.0
    warm_s: float = 0.0  # what arrives so long before the start is sent, and not counted
    outstanding: int = 0  # offline
    through_sidecar: bool = True
    patience_s: float = 60.0


def length(draw: random.Random, lengths: Lengths) -> int:
    """Draw a lognormal length with that median and 99th percentile."""
    median, p99, most = lengths
    return max(1, min(most, round(median * math.exp(draw.gauss(0, 1) * math.log(p99 / median) / 2.326))))


def arrivals(order: CallerOrder) -> list[tuple[float, int, int]]:
    """Return (due, prompt tokens, output tokens); what only warms up is due before 0."""
    found = []
    for begin_s, end_s in ((-order.warm_s, 0.0), (0.0, order.seconds)):
        draw, due_s = random.Random(f"{order.workload} {begin_s < 0}"), begin_s
        while (due_s := due_s + draw.expovariate(order.rate_per_s)) < end_s:
            prompt, output = WORKLOADS[order.workload]
            found.append((due_s, length(draw, prompt), length(draw, output)))
    return found


async def ask(
    client: EngineClient,
    ids: Sequence[int],
    tokens: int,
    heard: Callable[[float, int], object],
    *,
    streaming: bool,
    lane: str,
) -> str:
    """Send one request and call `heard` with (moment, tokens) of each response; return its error, or nothing."""
    request = token_request("tensorrt_llm", ids, tokens, f"{random.getrandbits(48):x}")
    for name, value in (("streaming", streaming), ("exclude_input_in_output", True)):
        add_tensor(request, name, "BOOL", (value,), (1, 1))
    try:
        call: Any = client.open([("x-lane", lane)] if lane == "offline" else [])
        await send(call, request)
        while (answer := await call.read()) is not grpc.aio.EOF:
            if answer.error_message:
                return str(answer.error_message)[:160]
            if count := len(output_values(answer.infer_response, "output_ids") or ()):
                heard(time.monotonic(), count)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"[:160]
    return ""


async def online(order: CallerOrder) -> dict[str, Any]:
    """Send what arrives; return each counted request with its moments."""
    jobs, draw, results = arrivals(order), random.Random(order.seed), list[dict[str, Any]]()
    prompts = [[draw.randrange(*VOCABULARY) for _ in range(prompt)] for _, prompt, _ in jobs]

    async def one(number: int) -> None:
        due_s, _, wanted = jobs[number]
        due_at_s = order.start_s + due_s
        await asyncio.sleep(due_at_s - time.monotonic())
        heard: list[tuple[float, int]] = []
        late_ms = 1e3 * (time.monotonic() - due_at_s)
        error = await ask(
            client, prompts[number], wanted, lambda *each: heard.append(each), streaming=True, lane="online"
        )
        moments = [moment for moment, _ in heard]
        if due_s >= 0:
            results.append(
                {
                    "number": number,
                    "error": error or ("" if heard else "no tokens"),
                    "late_ms": late_ms,
                    "ttft_ms": 1e3 * (moments[0] - due_at_s) if heard else None,
                    "e2e_ms": 1e3 * (time.monotonic() - due_at_s),
                    "tokens": sum(count for _, count in heard),
                    "wanted": wanted,
                    "gaps_ms": [1e3 * (b - a) for a, b in pairwise(moments)],
                }
            )

    async with EngineClient(order.target) as client:
        tasks = [asyncio.create_task(one(number), name=f"online {number}") for number in range(len(jobs))]
        await asyncio.wait(tasks, timeout=order.start_s + order.seconds + order.patience_s - time.monotonic())
    return {"due": sum(due >= 0 for due, *_ in jobs), "requests": results}


async def offline(order: CallerOrder) -> dict[str, Any]:
    """Keep so many requests outstanding until SIGTERM; return when which tokens came."""
    draw, told = random.Random(order.seed), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    heard: list[tuple[float, int]] = []
    errors: dict[str, int] = {}
    prompt, output = OFFLINE["smoke" if order.workload == "smoke" else "items"]

    async def keep_one_outstanding() -> None:
        while True:
            ids = [draw.randrange(*VOCABULARY) for _ in range(length(draw, prompt))]
            wanted, streaming = length(draw, output), not order.through_sidecar
            error = await ask(
                client, ids, wanted, lambda *each: heard.append(each), streaming=streaming, lane="offline"
            )
            if error:
                errors[error] = errors.get(error, 0) + 1
                await asyncio.sleep(0.2)

    async with EngineClient(order.target) as client:
        tasks = [asyncio.create_task(keep_one_outstanding(), name=f"offline {n}") for n in range(order.outstanding)]
        await told.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return {"heard": heard, "errors": errors}


def main() -> None:
    order = CallerOrder(**json.loads(sys.stdin.readline()))
    result = asyncio.run(online(order) if order.lane == "online" else offline(order))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
