"""Status documents to look at the page with: a quarter of an hour of the simulator, as a sidecar would tell it.

    python -m dev.page_scenes tests/telemetry/scenes      # writes idle.json, busy.json, …

The scheduler, its listeners and the document are the product's; the engine is the simulator's, Kafka's part is written
down here, and the clock on the wall is stopped at a Tuesday morning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sidecar import __version__
from sidecar.core.events import Action, EngineDown, Event, Lost
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import SchedulerSettings, TenantSettings
from sidecar.inflight.batch import BatcherSettings
from sidecar.inflight.profile import profile_named
from sidecar.settings.file import EngineEndpoint
from sidecar.sim import workloads
from sidecar.sim.driver import Observer, SimulatedDriver
from sidecar.sim.machine import Machine
from sidecar.sim.policies import CHUNK_TOKENS
from sidecar.sim.workloads import SimulatedRequest
from sidecar.telemetry.http import Status
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.recent import Recent

RECORDED = Path(__file__).parents[1] / "tests" / "telemetry" / "scenes"
NOW = 1_795_509_067.0  # Tuesday, 24 November 2026, 08:31:07 UTC
SECONDS = 900.0
ENGINE = EngineEndpoint(name="a100-0", slots=32, usd_per_hour=14.4, tokens_max=8192, yield_rows=20)
TENANTS = {"research": TenantSettings(weight=3.0), "labels": TenantSettings(weight=1.0)}
CALLERS = ("chat", "chat", "chat", "search", "chat", "assist", "search")
JOBS = (("research", "weekly-eval"), ("labels", "reviews-2026-11"), ("research", "weekly-eval"), ("default", ""))
DEADLINES_S = {"weekly-eval": 9 * 3600.0, "reviews-2026-11": 5400.0}


def scene(name: str) -> dict[str, Any]:
    """A recorded document."""
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return found


class Heard(Observer):
    """Gives everything to the listeners of a real driver."""

    def __init__(self, recent: Recent, metrics: Metrics) -> None:
        self._listeners = (recent, metrics)

    def decided(self, event: Event, actions: Sequence[Action], driver: SimulatedDriver) -> None:
        """Tell them, in their order."""
        self.hear(driver.now_s, event, actions)

    def hear(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """One event."""
        for each in self._listeners:
            each.handled(now_s, event, actions)

    def finished(self, progress: Any) -> None:
        """Counters of how requests ended are not on the page."""


@dataclass(slots=True)
class EngineWord:
    """How an engine is, as its watch would say."""

    reason: str = ""
    since_s: float = 0.0


class SceneEngines:
    """Answers for the engine watch."""

    def __init__(self, word: EngineWord) -> None:
        self._word = word

    def health(self, _name: str) -> EngineWord:
        """The one engine's."""
        return self._word

    def faults(self, _name: str) -> list[str]:
        """None."""
        return []


class PageScene:
    """One sidecar over the simulator's engine."""

    def __init__(
        self,
        workload: str,
        *,
        slots: int = ENGINE.slots,
        seed: int = 3,
        offline: bool = True,
        objective_ms: float = 500.0,
    ) -> None:
        engine, profile = replace(ENGINE, slots=slots, yield_rows=slots * 5 // 8), profile_named("70b-tp4-a100")
        self.workload, self.seed = workloads.by_name(workload), seed
        settings = SchedulerSettings(tenants=TENANTS, ttft_objective_ms=objective_ms)
        self.scheduler = Scheduler(settings, [engine.for_scheduler()])
        self.clock: Callable[[], float] = lambda: 0.0
        self.recent = Recent((engine,), self.scheduler, clock=lambda: self.clock(), wall=lambda: NOW)
        self.metrics = Metrics((engine,), version=__version__, config_hash="", scheduler=settings)
        self.heard = Heard(self.recent, self.metrics)
        batch = BatcherSettings(
            max_batch_size=slots, max_num_tokens=CHUNK_TOKENS, max_seq_len=8192, kv_tokens_max=profile.kv_tokens_max
        )
        self.driver = SimulatedDriver(
            scheduler=self.scheduler, machines={engine.name: Machine(batch, profile)}, observer=self.heard
        )
        self.clock = lambda: self.driver.now_s
        items = self._items() if offline else None
        self.driver.begin(self._online(), None if items is None else lambda now_s: self._item(next(items), now_s))
        self.word = EngineWord()

    def run(self, until_s: float = SECONDS) -> PageScene:
        """Go on until then."""
        self.driver.run(until_s)
        return self

    def tell(self, event: Event) -> None:
        """The driver brings this event, and nobody carries anything out any more."""
        now_s = self.clock()
        self.heard.hear(now_s, event, self.scheduler.handle(event, now_s))

    def document(self, **parts: Any) -> dict[str, Any]:
        """What `/status.json` would say now."""
        status = Status(
            self.scheduler.snapshot,
            self.metrics,
            "0.9.0",
            engines=SceneEngines(self.word),
            parts={name: partial(parts.get, name) for name in parts},
            job_counts=lambda _tenant, job: {"done": 3 * len(job) ** 3, "failed": len(job) // 8},
            recent=self.recent,
        )
        return asyncio.run(_told(status)) | {"tasks": 0}

    def _online(self) -> Iterator[SimulatedRequest]:
        for number, each in enumerate(self.workload.online(self.seed, SECONDS / 3600)):
            yield replace(each, request=replace(each.request, tenant=CALLERS[number % len(CALLERS)]))

    def _items(self) -> Iterator[tuple[SimulatedRequest, str, str]]:
        for number, each in enumerate(self.workload.backlog(self.seed)):
            yield each, *JOBS[number % len(JOBS)]

    @staticmethod
    def _item(item: tuple[SimulatedRequest, str, str], now_s: float) -> SimulatedRequest:
        each, tenant, job = item
        deadline_s = DEADLINES_S.get(job, float("inf"))
        return replace(
            each, request=replace(each.request, arrived_s=now_s, tenant=tenant, job=job, deadline_s=deadline_s)
        )


async def _told(status: Status) -> dict[str, Any]:
    return status.document()


def kafka(state: str = "running", reason: str = "none", since_s: float = 861.0) -> dict[str, Any]:
    """What the offline lane's part of the document says."""
    phase = state.partition(":")[0]
    told = {"state": state, "phase": phase, "reason": reason, "since_s": since_s}
    partitions = [
        {
            **told,
            "partition": number,
            "ready": phase == "running",
            "watermark": 41_800 + 97 * number,
            "position": 42_000 + 97 * number,
            "gaps": 3 * number,
            "end": 61_200 + 311 * number,
            "in_flight": 14 + number,
            "finished": 2 * number,
            "bytes_held": 90_000,
            "oldest_ms": 0,
            "lag": 19_400 + 214 * number,
        }
        for number in range(4 if phase in ("running", "degraded") else 0)
    ]
    items = [
        {"outcome": "done", "reason": "", "count": 41_961},
        {"outcome": "dlq", "reason": "too_long", "count": 17},
        {"outcome": "dlq", "reason": "not_json", "count": 4},
        {"outcome": "expired", "reason": "expired", "count": 2},
    ]
    stats = {"consumed": 42_100, "executions": 44_012, "retried": 12, "commits": 861, "items": items}
    return {**told, "topic": "inference.requests", "stats": stats, "partitions": partitions}


def dead_letters() -> list[dict[str, Any]]:
    """The last ones."""
    last = (("too_long", 12, "labels", "reviews-2026-11"), ("not_json", 271, "", ""), ("too_long", 513, "labels", ""))
    return [
        {
            "at": NOW - ago_s,
            "reason": reason,
            "source": f"inference.requests/{ago_s % 4}/{42_007 - ago_s}",
            "tenant": tenant,
            "job": job,
            "retries": 0,
        }
        for reason, ago_s, tenant, job in last
    ]


def idle() -> dict[str, Any]:
    """Nobody asks for anything."""
    scene = PageScene("origin", offline=False)
    scene.driver.calm()
    return scene.run().document(offline=kafka(), last_dead_letters=[])


def busy() -> dict[str, Any]:
    """Online answers begin in time, and offline has what they leave."""
    return (
        PageScene("conversation", objective_ms=1000.0).run().document(offline=kafka(), last_dead_letters=dead_letters())
    )


def overload() -> dict[str, Any]:
    """More online requests come than eight slots can serve."""
    return PageScene("overload", slots=8).run().document(offline=kafka(), last_dead_letters=dead_letters())


def engine_down() -> dict[str, Any]:
    """The one engine broke off 42 seconds ago."""
    scene = PageScene("origin").run(SECONDS - 42)
    now_s = scene.driver.now_s
    running = [each.request.id for each in scene.scheduler.alive() if each.engine]
    reason = "UNAVAILABLE: failed to connect to all addresses; connection refused (127.0.0.1:8001)"
    scene.clock = lambda: now_s
    scene.tell(EngineDown(engine=ENGINE.name, reason=reason))
    for each in running:
        scene.tell(Lost(request_id=each))
    scene.clock = lambda: SECONDS
    scene.word = EngineWord(reason, time.monotonic() - 42.0)
    return scene.document(offline=kafka(), last_dead_letters=dead_letters())


def lane_stopped() -> dict[str, Any]:
    """A right is missing in Kafka: online goes on, and items wait there."""
    detail = "waiting: the group sidecar may not write to the topic inference.results (TOPIC_AUTHORIZATION_FAILED)"
    scene = PageScene("conversation", offline=False, objective_ms=1000.0).run()
    return scene.document(offline=kafka(detail, "rights", 372.0), last_dead_letters=dead_letters())


SCENES = {each.__name__: each for each in (idle, busy, overload, engine_down, lane_stopped)}


def main(arguments: list[str] | None = None) -> int:
    """Write the documents."""
    parser = argparse.ArgumentParser(description="Write the status documents that the page is looked at with.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--scene", choices=SCENES, action="append")
    options = parser.parse_args(arguments)
    options.directory.mkdir(parents=True, exist_ok=True)
    for name in options.scene or SCENES:
        text = json.dumps(SCENES[name](), separators=(",", ":"))
        (options.directory / f"{name}.json").write_text(f"{text}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
