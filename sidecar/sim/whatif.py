"""What would other settings have done? A recording's arrivals, cancellations and true output lengths, run again.

Beside the recording's own figures stand two runs of the simulated driver over the same iteration times: `replayed` has
the recorded settings, `changed` the others. What the simulator gets wrong it gets wrong in both, and the first of them
beside the recording shows how much that is. Offline items arrive when
they were recorded: settings that finish more of them may run out of items, which `offline_waiting` (at the end) shows.
Outages and foreign load are not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sidecar.core.events import Action, Dispatch, Event, Preempt
from sidecar.core.request import DispatchKind, Lane
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.inflight.batch import BatcherSettings
from sidecar.inflight.profile import IterationTimes
from sidecar.sim.driver import Decides, Observer, SimulatedDriver
from sidecar.sim.figures import percentiles
from sidecar.sim.machine import Machine
from sidecar.sim.policies import CHUNK_TOKENS, changed, parse_overrides
from sidecar.sim.progress import RequestProgress
from sidecar.sim.recording import Recording
from sidecar.sim.simulation_run import DRAIN_S, PROGRESS_S
from sidecar.sim.tables import Table


@dataclass(slots=True)
class ReplayTally(Observer):
    """Counts what the figures need."""

    ttft_ms: list[float] = field(default_factory=list)
    e2e_ms: list[float] = field(default_factory=list)
    refused: int = 0
    cancelled: int = 0
    preemptions: int = 0
    contended: int = 0
    offline_of_contended: int = 0

    def decided(self, event: Event, actions: Sequence[Action], driver: SimulatedDriver) -> None:  # noqa: ARG002
        for action in actions:
            if isinstance(action, Preempt):
                self.preemptions += 1
            elif isinstance(action, Dispatch) and action.contended:
                self.contended += 1
                self.offline_of_contended += action.kind is not DispatchKind.ONLINE

    def finished(self, progress: RequestProgress) -> None:
        request = progress.request
        if request.lane is Lane.OFFLINE:
            return
        if progress.outcome == "ended":
            self.ttft_ms.append(1000 * (progress.first_token_s - request.arrived_s))
            self.e2e_ms.append(1000 * (progress.finished_s - request.arrived_s))
        elif progress.outcome == "cancelled":
            self.cancelled += 1
        else:
            self.refused += 1

    def online(self) -> dict[str, Any]:
        """Return what callers saw."""
        return {
            "n": len(self.ttft_ms),
            "refused": self.refused,
            "cancelled": self.cancelled,
            "failed": 0,  # outages are not repeated
            "ttft_ms": percentiles(self.ttft_ms),
            "e2e_ms": percentiles(self.e2e_ms),
        }


def machine_of(engine: EngineSettings, profile: IterationTimes) -> Machine:
    """A simulated engine as wide as `engine`, that keeps the times of `profile`."""
    settings = BatcherSettings(
        max_batch_size=engine.slots,
        max_num_tokens=max(CHUNK_TOKENS, engine.slots),
        max_seq_len=engine.tokens_max,
        kv_tokens_max=engine.kv_tokens or profile.kv_tokens_max,
        tokens_per_block=engine.block_tokens,
    )
    return Machine(settings, profile)


def compare(recording: Recording, pairs: Sequence[str], profile: IterationTimes | None) -> dict[str, Any]:
    """Return what was recorded, and the simulated runs under the recorded settings and the changed ones.

    Raises SettingsError for a pair that cannot be.
    """
    wanted = parse_overrides(list(pairs))
    scheduler, engines = recording.settings, recording.engines
    new = changed(scheduler, wanted), [changed(each, wanted) for each in engines]
    error: float | None = None
    if profile is None:
        profile, error = recording.gaps.profile()
    return {
        "records": recording.records,
        "seconds": round(recording.seconds, 3),
        "profile": {
            "name": profile.name,
            "overhead_ms": round(profile.overhead_ms, 3),
            "decode_row_ms": round(profile.decode_row_ms, 4),
            "prefill_token_ms": round(profile.prefill_token_ms, 4),
            "error": None if error is None else round(error, 4),
        },
        "what_if": {name: str(value) for name, value in wanted.items()},
        "recorded": recording.figures,
        "replayed": run(recording, scheduler, engines, profile),
        "changed": run(recording, *new, profile),
    }


def run(
    recording: Recording, settings: SchedulerSettings, engines: Sequence[EngineSettings], profile: IterationTimes
) -> dict[str, Any]:
    """The figures of one run of everything that the recording holds."""
    tally = ReplayTally()
    machines = {each.name: machine_of(each, profile) for each in engines}
    decides: Decides = Scheduler(settings, engines)
    driver = SimulatedDriver(scheduler=decides, machines=machines, observer=tally, progress_s=PROGRESS_S)
    driver.begin(iter(recording.jobs))
    for at_s, request_id in recording.cancels:
        driver.at(at_s, partial(driver.cancel, request_id))
    driver.run(recording.seconds)
    usages = [machine.usage for machine in machines.values()]
    tokens = sum(each.offline_tokens - each.discarded_tokens for each in usages)
    figures = {
        "offline_tokens_per_s": round(tokens / recording.seconds, 2) if recording.seconds else 0.0,
        "offline_waiting": driver.waiting[Lane.OFFLINE],
        "preemptions": tally.preemptions,
        "contended": tally.contended,
        "offline_contended_share": tally.offline_of_contended / tally.contended if tally.contended else None,
    }
    driver.calm()
    driver.answer_online(recording.seconds + DRAIN_S)
    return {"online": tally.online(), **figures}


def table(report: dict[str, Any]) -> Table:
    """Return what was recorded, and both simulated runs, one figure a row."""
    change = ", ".join(f"{name}={value}" for name, value in report["what_if"].items())
    title = f"{report['records']} records over {report['seconds']:.0f} s, simulated with {_times(report)}"
    shown = Table(title=title, columns=("", "as recorded", "replayed", change))
    runs = report["recorded"], report["replayed"], report["changed"]
    for name in ("n", "refused", "cancelled", "failed"):
        shown.add_row(f"online {name}", *(str(each["online"][name]) for each in runs))
    for name, latency in (("ttft_ms", "TTFT"), ("e2e_ms", "end to end")):
        for share in ("p50", "p95", "p99"):
            shown.add_row(f"{latency} {share}", *(_cell(each["online"][name][share], " ms") for each in runs))
    shown.add_row("offline tokens/s", *(_cell(each["offline_tokens_per_s"]) for each in runs))
    shown.add_row("offline items waiting at the end", *(str(each["offline_waiting"]) for each in runs))
    shown.add_row("preemptions", *(str(each["preemptions"]) for each in runs))
    shown.add_row("contended dispatches", *(str(each["contended"]) for each in runs))
    shares = [each["offline_contended_share"] for each in runs]
    shown.add_row("  of them offline's", *("-" if each is None else f"{each:.1%}" for each in shares))
    return shown


def _times(report: dict[str, Any]) -> str:
    each = report["profile"]
    costs = f"{each['overhead_ms']} + {each['decode_row_ms']} · rows + {each['prefill_token_ms']} · prompt tokens ms"
    return f"{each['name']} times ({costs})"


def _cell(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,.1f}{unit}"
