"""How soon a slot is free after a stop, on the real server: from the scheduler's Abort to the engine's confirmation.

    scripts/bench cancel [--stops N] [--profile P] [--json FILE]

Every slot runs a long generation; each is stopped after its first tokens and replaced by another, so that stops meet a
full batch. What bounds them: the call that says so, and the rest of the iteration that runs when it arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dev.figures import ran_on, write
from dev.interrupt import run_until_told
from dev.triton import Triton, TritonSettings, running
from sidecar.call import Outcome, Timeline
from sidecar.core.events import Abort, Action, Ended, EngineUp, Event, Failed, Lost, Progressed, Stopped
from sidecar.core.request import Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.driver.driver import Driver
from sidecar.token_call import Sampling, TokenCall
from sidecar.triton.client import EngineClient
from sidecar.triton.tokenizer import Tokens

SLOTS = 8
OUTPUT_TOKENS = 1500


class Stopwatch:
    """A Listener: when each request was told to stop, and how long its slot took to come free."""

    def __init__(self) -> None:
        self.stop_to_free_ms: list[float] = []
        self.ended_by: dict[str, int] = {}
        self._told_s: dict[str, float] = {}
        self.streaming: dict[str, asyncio.Event] = {}

    def handled(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """Note first tokens, stops and their ends."""
        if isinstance(event, Progressed):
            for request_id in event.first_tokens:
                self.streaming[request_id].set()
        if isinstance(event, Ended | Stopped | Failed | Lost) and event.request_id in self._told_s:
            self.stop_to_free_ms.append(1000 * (now_s - self._told_s.pop(event.request_id)))
            name = type(event).__name__.lower()
            self.ended_by[name] = self.ended_by.get(name, 0) + 1
        for action in actions:
            if isinstance(action, Abort):
                self._told_s[action.request_id] = now_s

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        """Nothing more is known of the request."""
        del timeline, outcome
        self.streaming.pop(request.id, None)


class TimedClient(EngineClient):
    """Notes how long each call took that told the engine to stop something."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.call_ms: list[float] = []

    async def stop(self, model: str, request_id: str, timeout_s: float) -> None:
        """As the EngineClient does it."""
        begun_s = time.perf_counter()
        await super().stop(model, request_id, timeout_s)
        self.call_ms.append(1000 * (time.perf_counter() - begun_s))


def spread(values_ms: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    ordered = sorted(values_ms)
    places = {"p50": len(ordered) // 2, "p99": int(len(ordered) * 0.99), "max": -1}
    return {name: round(ordered[place], 1) for name, place in places.items()}


async def main(options: argparse.Namespace) -> dict[str, Any]:
    """The figures."""
    with tempfile.TemporaryDirectory() as directory:
        settings = TritonSettings(slots=SLOTS, parameters={"preset": "tiny", "profile": options.profile})
        async with running(Path(directory), settings) as triton, TimedClient(triton.target) as client:
            watch = await stopped(client, triton, options.stops)
    return {
        "stops": len(watch.stop_to_free_ms),
        "stop_to_free_ms": spread(watch.stop_to_free_ms),
        "stop_call_ms": spread(client.call_ms),  # until the server has answered: the engine knows of it before
        "confirmed_as": watch.ended_by,
        "engine": {"profile": options.profile, "slots": SLOTS},
        "ran_on": {**ran_on(), "triton": "2.51.0"},
    }


async def stopped(client: EngineClient, triton: Triton, stops: int) -> Stopwatch:
    """So many generations have been stopped, a full batch at a time."""
    watch = Stopwatch()
    engine = EngineSettings(name="e0", slots=SLOTS)
    driver = Driver(Scheduler(SchedulerSettings(window_ms=0), [engine]), {"e0": client}, listeners=(watch,))
    prompt = (*Tokens.load(triton.tokenizer).encode_prompt("go on and on"),)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(driver.run(), name="driver")
        driver.handle(EngineUp(engine="e0"))
        slots = [
            tasks.create_task(_stop_repeatedly(driver, watch, prompt, stops // SLOTS), name=f"slot {number}")
            for number in range(SLOTS)
        ]
        await asyncio.wait(slots)
        driver.close()
    return watch


async def _stop_repeatedly(driver: Driver, watch: Stopwatch, prompt: tuple[int, ...], stops: int) -> None:
    sampling = Sampling(min_tokens=OUTPUT_TOKENS)
    call = TokenCall(prompt_ids=prompt, output_tokens_max=OUTPUT_TOKENS, sampling=sampling)
    for _ in range(stops):
        request = Request(
            id=driver.mint("c"),
            lane=Lane.OFFLINE,
            model="tensorrt_llm",
            arrived_s=driver.now_s,
            prompt_tokens=len(prompt),
            output_tokens_max=OUTPUT_TOKENS,
        )
        watch.streaming[request.id] = streaming = asyncio.Event()
        task = asyncio.create_task(driver.generate(request, call), name=request.id)
        await streaming.wait()
        task.cancel()
        await asyncio.wait((task,))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench cancel", description="From stop to a free slot.")
    parser.add_argument("--stops", type=int, default=400, help="how many (400)")
    parser.add_argument("--profile", default="8b-a100", help="iteration times of the engine (8b-a100)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - = standard output")
    return parser.parse_args()


if __name__ == "__main__":
    given = parsed()
    write(run_until_told(main(given)), given.json)
