"""What one run of the bench gave, and what the simulator says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from dev.bench._mixed_load import OnlineLoad
from dev.load import LoadResult, percentiles
from sidecar.core.errors import SidecarError
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings
from sidecar.inflight.profile import IterationTimes
from sidecar.sim.driver import Decides, SimulatedDriver
from sidecar.sim.replay import recorded
from sidecar.sim.simulation_run import DRAIN_S
from sidecar.sim.whatif import ReplayTally, machine_of
from sidecar.sim.workloads import SimulatedRequest
from sidecar.telemetry.segment_files import segments

OVERRUNS_MAX = 0.01  # of the iterations of a valid run
WARM_S = 3.0  # from the first offline tokens to the measurement
FILL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run gave. Latencies in ms, as the callers saw them."""

    policy: str
    seed: int
    load: LoadResult
    offline_tokens_per_s: float
    overrun_ratio: float
    directory: Path

    @property
    def valid(self) -> bool:
        """True if the engine kept the pace of its profile."""
        return self.overrun_ratio <= OVERRUNS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What the simulator says of one run."""

    ttft_ms: dict[str, float | None]
    offline_tokens_per_s: float


def simulate(
    decides: Decides,
    engine: EngineSettings,
    profile: IterationTimes,
    online: Sequence[SimulatedRequest],
    items: Sequence[SimulatedRequest],
    seconds: float,
) -> Simulated:
    """One engine with `profile`, under `decides`, with these requests and an endless backlog of `items`."""
    tally, machine = ReplayTally(), machine_of(engine, profile)
    driver = SimulatedDriver(scheduler=decides, machines={engine.name: machine}, observer=tally)
    numbers = count()

    def next_item(now_s: float) -> SimulatedRequest:
        number = next(numbers)
        job = items[number % len(items)]
        return replace(job, request=replace(job.request, id=f"b{number}", arrived_s=now_s))

    driver.begin(iter(()), next_item)
    while machine.usage.offline_tokens < 4 * engine.slots and driver.now_s < FILL_TIMEOUT_S:  # as `Stack.run` waits
        driver.run(driver.now_s + 0.2)
    begin_s = driver.now_s + WARM_S
    for job in online:
        arrived = replace(job, request=replace(job.request, arrived_s=begin_s + job.request.arrived_s))
        driver.at(arrived.request.arrived_s, partial(driver.arrive, arrived))
    driver.run(begin_s)
    before = machine.usage.offline_tokens
    driver.run(begin_s + seconds)
    tokens = machine.usage.offline_tokens - before
    driver.calm()
    driver.answer_online(begin_s + seconds + DRAIN_S)
    return Simulated(ttft_ms=percentiles(tally.ttft_ms), offline_tokens_per_s=tokens / seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What all runs of one workload had in common with their simulations."""

    loads: Mapping[int, OnlineLoad]  # by seed
    items: Sequence[SimulatedRequest]
    ceiling_tokens_per_s: float
    seconds: float


def prediction(fitted: Run, other: Run, world: World) -> dict[str, Any]:
    """`other` as a simulator fitted to the run `fitted` predicts it: relative errors, and what they rest on."""
    found = recorded(segments(fitted.directory / "decisions"))
    engine, (profile, error) = found.engines[0], found.gaps.profile()

    def ours(seed: int) -> Simulated:
        scheduler = Scheduler(found.settings, found.engines)
        return simulate(scheduler, engine, profile, world.loads[seed].jobs, world.items, world.seconds)

    around_ms = _share(fitted, "p50") - (ours(fitted.seed).ttft_ms["p50"] or 0.0)
    simulated = ours(other.seed)
    predicted = {share: (simulated.ttft_ms[share] or 0.0) + around_ms for share in ("p50", "p95")}
    predicted["harvest"] = simulated.offline_tokens_per_s / world.ceiling_tokens_per_s
    measured = {share: _share(other, share) for share in ("p50", "p95")}
    measured["harvest"] = other.offline_tokens_per_s / world.ceiling_tokens_per_s
    return {
        **{name: round(abs(predicted[name] / true - 1), 4) if true else None for name, true in measured.items()},
        "predicted": {name: round(value, 3) for name, value in predicted.items()},
        "measured": {name: round(value, 3) for name, value in measured.items()},
        "fitted": {
            "overhead_ms": round(profile.overhead_ms, 2),
            "decode_row_ms": round(profile.decode_row_ms, 3),
            "prefill_token_ms": round(profile.prefill_token_ms, 3),
            "error": round(error, 4),
            "around_the_engine_ms": round(around_ms, 1),
        },
        "seeds": {"fitted": fitted.seed, "predicted": other.seed},
        "valid": fitted.valid and other.valid,
    }


def _share(run: Run, share: str) -> float:
    return percentiles(run.load.ttft_ms)[share] or 0.0


def predicted(runs: Sequence[Run], world: World) -> dict[str, Any]:
    """The prediction of the second seed from the first; why not, if it cannot be made."""
    try:
        if len(runs) < 2:
            raise SidecarError("it takes `ours` on two seeds")
        if not segments(runs[0].directory / "decisions"):
            raise SidecarError(f"run {runs[0].policy}, seed {runs[0].seed} left no recording")
        return prediction(runs[0], runs[1], world)
    except SidecarError as error:
        return {"p50": None, "p95": None, "harvest": None, "why_not": str(error)}
