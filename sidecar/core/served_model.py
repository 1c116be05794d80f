"""The engines that serve one model, and the two lanes that wait before them."""

from __future__ import annotations

from dataclasses import dataclass, field

from sidecar.core.arrivals import ArrivalRate
from sidecar.core.engine import Engine
from sidecar.core.events import Action, PauseIntake, ResumeIntake
from sidecar.core.jobs import Jobs
from sidecar.core.lane_queue import LaneQueue
from sidecar.core.limits import lendable
from sidecar.core.pace import Pace
from sidecar.core.placement import Placement
from sidecar.core.request import OFFLINE, ONLINE, Lane, Request
from sidecar.core.settings import SchedulerSettings


@dataclass(slots=True, eq=False)
class ServedModel:
    """One model: its engines and its queues."""

    model: str
    online: LaneQueue
    offline: LaneQueue
    jobs: Jobs
    engines: list[Engine] = field(default_factory=list)
    placement: Placement = field(init=False)
    arrivals: ArrivalRate = field(default_factory=ArrivalRate)
    pace: dict[Lane, Pace] = field(default_factory=lambda: {lane: Pace() for lane in Lane})
    backing_off: int = 0  # offline requests that wait for their retry
    intake_marks: tuple[int, int] = (1, 0)  # offline load at which the intake pauses, and at which it goes on
    intake_paused: bool = False

    def __post_init__(self) -> None:
        self.placement = Placement(self.engines)

    @classmethod
    def of(cls, model: str, settings: SchedulerSettings) -> ServedModel:
        """A model without engines, for which nobody waits."""
        jobs = Jobs(settings.urgency_horizon_s, settings.credit_urgent, settings.week_s)
        marks = settings.offline_queue_max, settings.offline_queue_low
        return cls(model, LaneQueue(settings), LaneQueue(settings), jobs, intake_marks=marks)

    def queue(self, lane: Lane) -> LaneQueue:
        """Where requests of `lane` wait."""
        return self.online if lane is ONLINE else self.offline

    def engine_named(self, name: str) -> Engine | None:
        """The engine of that name; None if there is none."""
        return next((engine for engine in self.engines if engine.settings.name == name), None)

    @property
    def offline_load(self) -> int:
        """Offline requests that wait, or will: what backs off counts, for it comes back."""
        return self.offline.waiting + self.backing_off

    def somebody_left(self, lane: Lane) -> None:
        """One fewer waits in `lane`."""
        if not self.queue(lane).waiting:
            self.pace[lane].nobody_waits()

    def offline_grew(self, now_s: float) -> None:
        """One more waits in the offline lane: where nobody did, its wait for an engine begins."""
        for engine in self.engines:
            if engine.offline_waits_since_s is None:
                engine.offline_waits_since_s = now_s

    def offline_shrank(self, now_s: float) -> None:
        """One fewer waits in the offline lane: with nobody left no reserved dispatch is owed.

        Whoever waits for a slot of its tenant's limit waits: its reserved dispatches do not lapse.
        """
        for engine in self.engines:
            if not self.offline.waiting:
                engine.reservation.offline_emptied()
                engine.starved_until(now_s)
            elif engine.offline_waits_since_s is None:
                engine.offline_waits_since_s = now_s

    def intake(self) -> list[Action]:
        """What to tell the intake, if anything: it pauses at the high mark and goes on at the low one."""
        high, low = self.intake_marks
        if not self.intake_paused and self.offline_load >= high:
            self.intake_paused = True
            return [PauseIntake(model=self.model)]
        if self.intake_paused and self.offline_load <= low:
            self.intake_paused = False
            return [ResumeIntake(model=self.model)]
        return []

    @property
    def harvested_tokens(self) -> int:
        """Output tokens of the offline lane since the start, over all engines."""
        return sum(engine.counts.output_tokens[OFFLINE] for engine in self.engines)

    @property
    def up(self) -> bool:
        """True if an engine of this model can take work."""
        return any(engine.up for engine in self.engines)

    def holds(self, request: Request) -> str:
        """Why no engine of this model can ever run `request`, in words with both numbers; "" if one can."""
        why = ""
        for engine in self.engines:
            why = engine.refuses(request)
            if not why:
                break
        return why

    def by_load(self) -> list[Engine]:
        """The engines that are up, least loaded first."""
        if len(self.engines) == 1:
            return self.engines if self.engines[0].up else []
        up = [engine for engine in self.engines if engine.up]
        if len(up) > 1:
            head = self.online.head()
            home = self.placement.home(head.request.prefix_key) if head else None
            up.sort(key=lambda engine: (engine.load, engine is not home))
        return up

    def lendable(self, now_s: float, engine: Engine, online_slots: int) -> float:
        """How many slots backfill may take now, over all engines, once online has taken so many on `engine`."""
        return sum(
            max(0, lendable(each, now_s, online_slots if each is engine else 0)) for each in self.engines if each.up
        )
