"""A minute of a simulated sidecar and its recording, for tests that read one back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sidecar.core.events import Action, Event, Progressed
from sidecar.core.request import Lane
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.inflight.profile import PROFILES
from sidecar.settings.recorder import RecorderSettings
from sidecar.sim.driver import Observer, SimulatedDriver
from sidecar.sim.whatif import machine_of
from sidecar.sim.workloads import SimulatedRequest, by_name, offline_job
from sidecar.telemetry.recorder import Recorder
from sidecar.telemetry.segment_files import segments

PROFILE = PROFILES["70b-tp4-a100"]
SETTINGS = SchedulerSettings(offline_queue_max=64, offline_queue_low=32)
ENGINE = EngineSettings(name="e0", slots=8, tokens_max=4096, kv_tokens=100_000, yield_rows=4)
SECONDS = 60.0


class Recording(Observer):
    """Hands everything to the recorder, with a gap for each token if asked, as the real driver has them."""

    def __init__(self, recorder: Recorder, *, per_token: bool) -> None:
        self.recorder, self.per_token = recorder, per_token
        self.last_s: dict[str, float] = {}  # when each stream gave its newest token

    def decided(self, event: Event, actions: Sequence[Action], driver: SimulatedDriver) -> None:
        if isinstance(event, Progressed) and self.per_token:
            event = replace(event, gaps_s=tuple(self._gaps_s(event, driver.now_s)))
        self.recorder.handled(driver.now_s, event, actions)

    def _gaps_s(self, event: Progressed, now_s: float) -> Iterator[float]:
        for request_id, tokens in event.tokens:
            if request_id not in event.first_tokens:
                yield from [(now_s - self.last_s[request_id]) / tokens] * tokens
            elif tokens > 1:
                yield from [PROFILE.iteration_s(8, 0)] * (tokens - 1)
            self.last_s[request_id] = now_s


def jobs() -> list[SimulatedRequest]:
    online = by_name("constant-3").online(1, SECONDS / 3600)
    lengths = by_name("origin").offline(1)
    items = [
        offline_job(n, *next(lengths), arrived_s=0.05 * n, output_max=1024, resumable=True) for n in range(int(SECONDS))
    ]
    return sorted([*online, *items], key=lambda job: job.request.arrived_s)


def record(directory: Path, *, per_token: bool = True, **settings: int) -> list[Path]:
    """A minute of a simulated sidecar, recorded; one online request is cancelled."""
    scheduler = Scheduler(SETTINGS, [ENGINE])
    recorder = Recorder(RecorderSettings(directory=directory, **settings), scheduler)
    driver = SimulatedDriver(
        scheduler=scheduler,
        machines={"e0": machine_of(ENGINE, PROFILE)},
        observer=Recording(recorder, per_token=per_token),
        tick_s=0.01,
    )
    driver.begin(iter(jobs()))
    first = next(job.request for job in jobs() if job.request.lane is Lane.ONLINE)
    driver.at(first.arrived_s + 0.01, lambda: driver.cancel(first.id))
    driver.run(SECONDS)
    recorder.close()
    return segments(directory)
