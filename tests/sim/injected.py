"""Recordings of the simulator in which one thing delays one request: what `explain` must name."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sidecar.core.events import Action, Event, Measured
from sidecar.core.request import Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.inflight.batch import BatcherSettings
from sidecar.inflight.profile import profile_named
from sidecar.settings.recorder import RecorderSettings
from sidecar.sim.driver import Observer, SimulatedDriver
from sidecar.sim.machine import Machine
from sidecar.sim.policies import CHUNK_TOKENS
from sidecar.sim.workloads import SimulatedRequest
from sidecar.telemetry.recorder import Recorder
from sidecar.telemetry.segment_files import segments

ENGINE = EngineSettings(name="e", slots=16, tokens_max=32_768)
SETTINGS = SchedulerSettings(ttft_objective_ms=500.0)
AT_S = 16.0  # when the request comes that is asked about
TARGET = "target"


class Slowed:
    """Iteration times that a test may make longer: once by some seconds, or from now on by a factor."""

    def __init__(self) -> None:
        self._times = profile_named("70b-tp4-a100")
        self.factor, self.once_s = 1.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._times, name)

    def iteration_s(self, *arguments: Any) -> float:
        once_s, self.once_s = self.once_s, 0.0
        return self._times.iteration_s(*arguments) * self.factor + once_s


class Recording(Observer):
    """Gives everything to a recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def decided(self, event: Event, actions: Sequence[Action], driver: SimulatedDriver) -> None:
        self._recorder.handled(driver.now_s, event, actions)


@dataclass(slots=True)
class Run:
    """One run before it begins."""

    rng: random.Random
    slots: int = ENGINE.slots
    settings: SchedulerSettings = SETTINGS
    offline: bool = True
    online: list[SimulatedRequest] | None = None
    at: list[tuple[float, Callable[[SimulatedDriver, Slowed], None]]] | None = None


def online(name: str, at_s: float, tenant: str, prompt: int, output: int) -> SimulatedRequest:
    request = Request(
        id=name,
        lane=Lane.ONLINE,
        model="tensorrt_llm",
        arrived_s=at_s,
        prompt_tokens=prompt,
        output_tokens_max=2048,
        tenant=tenant,
    )
    return SimulatedRequest(request=request, output_tokens=output)


def background(rng: random.Random) -> list[SimulatedRequest]:
    """Quiet callers, so that usual times are known: none just before the request that is asked about."""
    times = sorted(rng.uniform(1.0, AT_S - 4.0) for _ in range(16))
    return [online(f"c{n}", at_s, "chat", rng.randint(50, 600), rng.randint(10, 60)) for n, at_s in enumerate(times)]


def record(run: Run, directory: Path, trace_of: Callable[[str], str] = lambda _id: "") -> list[Path]:
    """The segments of one run."""
    engine = replace(ENGINE, slots=run.slots)
    scheduler, times = Scheduler(run.settings, [engine]), Slowed()
    recorder = Recorder(RecorderSettings(directory=directory), scheduler, in_thread=False, trace_of=trace_of)
    batch = BatcherSettings(
        max_batch_size=run.slots, max_num_tokens=CHUNK_TOKENS, max_seq_len=32_768, kv_tokens_max=times.kv_tokens_max
    )
    driver = SimulatedDriver(scheduler=scheduler, machines={"e": Machine(batch, times)}, observer=Recording(recorder))
    numbers = iter(range(10**6))

    def item(now_s: float) -> SimulatedRequest:
        n = next(numbers)
        request = Request(
            id=f"b{n}",
            lane=Lane.OFFLINE,
            model="tensorrt_llm",
            arrived_s=now_s,
            prompt_tokens=run.rng.randint(100, 900),
            output_tokens_max=512,
            tenant="labels",
            job="weekly",
        )
        return SimulatedRequest(request=request, output_tokens=run.rng.randint(20, 300))

    jobs = sorted(run.online or [], key=lambda each: each.request.arrived_s)
    driver.begin(iter(jobs), item if run.offline else None)
    for at_s, what in run.at or ():
        driver.at(at_s, lambda what=what: what(driver, times))  # type: ignore[misc]
    while driver.now_s < AT_S + 30 and (driver.now_s < AT_S + 1 or TARGET in driver.alive):
        driver.run(driver.now_s + 0.5)
        recorder.look()
    recorder.close()
    return segments(directory)


def run_of(cause: str, seed: int) -> Run:
    """A run in which this delays the request that is asked about."""
    rng = random.Random(f"{cause} {seed}")
    run = Run(
        rng=rng, online=[*background(rng), online(TARGET, AT_S, "chat", rng.randint(100, 500), rng.randint(15, 40))]
    )
    assert run.online is not None
    match cause:
        case "none":
            run.offline = False
        case "stall":
            stall_s, at_s = rng.uniform(0.5, 3.0), AT_S + rng.uniform(0.0, 0.35)
            # The iteration that takes up the small prompt is the long one: many alike are one step of the machine.
            run.online += [online("other", AT_S - 1.0, "chat", 100, 400), online("small", at_s, "chat", 8, 1)]
            run.at = [(at_s - 1e-6, lambda _, times: setattr(times, "once_s", stall_s))]
        case "burst":
            run.offline = rng.random() < 0.5
            run.online += [
                online(f"x{n}", AT_S - 0.05, "search", rng.randint(100, 400), rng.randint(60, 120)) for n in range(20)
            ]
        case "prompt":
            run.online += [online("long", AT_S - rng.uniform(0.02, 0.2), "legal", rng.randint(9_000, 24_000), 30)]
        case "foreign":
            run.offline = False

            def foreign(driver: SimulatedDriver, times: Slowed) -> None:
                times.factor = rng.uniform(2.0, 4.0)
                driver.tell(Measured(engine="e", ok=True, active_requests=rng.randint(10, 30)))

            run.at = [(AT_S + 0.01, foreign)]
        case "reserved":
            run.slots, run.settings = 1, replace(SETTINGS, reservation_every=2, reservation_every_urgent=2)
            run.online = [each for each in run.online if each.request.id == TARGET]
            run.online += [online(f"x{n}", AT_S - 3.0 + 0.02 * n, "search", 100, 15) for n in range(3)]
        case _:
            raise ValueError(cause)
    return run


CAUSES = ("stall", "burst", "prompt", "foreign", "reserved")
