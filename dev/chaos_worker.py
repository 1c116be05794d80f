"""One sidecar of the chaos harness: the offline lane as it ships before a merely fast engine, or a whole sidecar.

Prints one JSON line of counters twice a second, and drains on SIGTERM. Everything else is done to it from outside.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import TypeAdapter

from sidecar.app import serve
from sidecar.core.request import EndReason, Request
from sidecar.offline.lane import OfflineLane
from sidecar.settings.file import ServeSettings
from sidecar.settings.offline import OfflineSettings
from sidecar.token_call import Generated, RequestDeadError, TokenCall
from sidecar.triton.tokenizer import Tokens

SLOW_SHARE = 0.03  # of the items take far longer than the rest, so that there are always gaps
SLOW_S = 1.5
REPORT_S = 0.5
ATTEMPTS = 5  # of one item, as the scheduler has them
FAILS, GIVES_NOTHING = Path("engine-fails"), Path("engine-empty")  # in the working directory, while it lasts
EMPTY = tuple(map(ord, "always empty"))  # a prompt that begins so never has an output
COUNTERS = ("executions", "fenced", "reopens")


class FastEngine:
    """Gives a few ids after some milliseconds; while the harness says so, every third call fails or gives none."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._calls = 0

    async def generate(self, _request: Request, call: TokenCall) -> Generated:
        """The prompt back, after as many calls as it takes; dead after `ATTEMPTS`. Cancelling it cancels it."""
        begun_s = time.monotonic()
        always_empty = call.prompt_ids[: len(EMPTY)] == EMPTY
        for attempt in range(1, ATTEMPTS + 1):
            self._calls += 1
            third = self._calls % 3 == 0
            failed = third and _is(FAILS)
            empty = always_empty or (third and _is(GIVES_NOTHING))
            if not failed and not empty:
                return await self._answer(call, begun_s, attempt)
            await asyncio.sleep(0.01)
        raise RequestDeadError("INTERNAL: empty_output" if empty else "INTERNAL: the engine failed", ATTEMPTS)

    async def _answer(self, call: TokenCall, begun_s: float, attempts: int) -> Generated:
        slow = self._random.random() < SLOW_SHARE
        await asyncio.sleep(SLOW_S if slow else self._random.uniform(0.005, 0.1))
        return Generated(
            output_ids=call.prompt_ids[: call.output_tokens_max],
            reason=EndReason.LENGTH,
            engine="fast",
            dispatches=1,
            resumed=0,
            attempts=attempts,
            queue_wait_s=0.0,
            first_token_s=begun_s,
            finished_s=time.monotonic(),
        )


def _is(trouble: Path) -> bool:
    return trouble.exists()


class LetterTokens(Tokens):
    """One id per character: a real tokenizer is not what is tested here."""

    def __init__(self) -> None:
        self.end_id = 0

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def encode_words(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


async def _report(lane: OfflineLane) -> None:
    while True:
        stats = lane.stats
        line: dict[str, Any] = {name: getattr(stats, name) for name in COUNTERS} | {"done": sum(stats.items.values())}
        states = [lane.state_now, *(owned.state for owned in lane.owned_partitions())]
        line["reasons"] = sorted({state.cause.value for state in states})
        print(json.dumps(line), flush=True)
        await asyncio.sleep(REPORT_S)


async def _main(settings: OfflineSettings, seed: int) -> None:
    lane = OfflineLane(settings, FastEngine(seed), LetterTokens(), {"fast": 1 << 20}, seed=seed)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(lane.run(), name="lane")
        report = tasks.create_task(_report(lane), name="report")
        stopping = tasks.create_task(stop.wait(), name="stop")
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            await lane.drain(4 * SLOW_S)
        report.cancel()
        stopping.cancel()


async def _serve(settings: ServeSettings) -> None:
    async with asyncio.TaskGroup() as tasks:
        report = tasks.create_task(_report_status(settings.http), name="report")
        await serve(settings, instance=f"chaos-{os.getpid()}-", config_hash="chaos")
        report.cancel()


async def _report_status(address: str) -> None:
    async with aiohttp.ClientSession() as http:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"http://{address}/status.json") as answer:
                    lane = (await answer.json())["offline"]
                stats = lane.get("stats", {})
                line = {name: stats.get(name, 0) for name in COUNTERS}
                line["done"] = sum(each["count"] for each in stats.get("items", []))
                reasons = sorted({each["reason"] for each in [lane, *lane.get("partitions", [])]})
                print(json.dumps({**line, "reasons": reasons}), flush=True)
            await asyncio.sleep(REPORT_S)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", help="OfflineSettings, or ServeSettings, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    if "engines" in json.loads(arguments.settings):
        asyncio.run(_serve(TypeAdapter(ServeSettings).validate_json(arguments.settings)))
    else:
        asyncio.run(_main(TypeAdapter(OfflineSettings).validate_json(arguments.settings), arguments.seed))
