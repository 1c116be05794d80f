"""The engines that serve one model, and the two lanes that wait before them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sidecar.core.arrivals import ArrivalRate
from sidecar.core.deadlines import Jobs
from sidecar.core.engine import Engine
from sidecar.core.order import LaneQueue
from sidecar.core.settings import SchedulerSettings
from sidecar.core.work import Lane, Work


@dataclass(slots=True, eq=False)
class Pool:
    """One model: its engines and its queues."""

    model: str
    online: LaneQueue
    offline: LaneQueue
    jobs: Jobs
    engines: list[Engine] = field(default_factory=list)
    arrivals: ArrivalRate = field(default_factory=ArrivalRate)
    backing_off: int = 0  # offline items that wait for their retry
    intake_paused: bool = False

    @classmethod
    def of(cls, model: str, settings: SchedulerSettings) -> Pool:
        """A model without engines, for which nobody waits."""
        return cls(
            model, LaneQueue(settings), LaneQueue(settings), Jobs(settings.urgency_horizon_s, settings.credit_urgent)
        )

    def queue(self, lane: Lane) -> LaneQueue:
        """Where works of `lane` wait."""
        return self.online if lane is Lane.ONLINE else self.offline

    @property
    def offline_load(self) -> int:
        """Offline items that wait, or will."""
        return self.offline.waiting + self.backing_off

    @property
    def harvested_tokens(self) -> int:
        """Output tokens of the offline lane since the start, over all engines."""
        return sum(engine.counts.output_tokens[Lane.OFFLINE] for engine in self.engines)

    @property
    def up(self) -> bool:
        """True if an engine of this model can take work."""
        return any(engine.up for engine in self.engines)

    @property
    def tokens_max(self) -> int:
        """The longest sequence that an engine of this model holds."""
        return max(engine.settings.tokens_max for engine in self.engines)

    def slots_max(self, lane: Lane) -> int:
        """The widest work that an engine of this model can ever take from `lane`."""
        if lane is Lane.ONLINE:
            return max(engine.settings.slots for engine in self.engines)
        # Where the whole engine is headroom, offline still has its turns, one slot each.
        return max(max(1, engine.settings.slots - engine.settings.slots_online_min) for engine in self.engines)

    def holds(self, work: Work) -> str:
        """Why no engine of this model can ever run `work`, in words with both numbers; "" if one can."""
        if work.slots > self.slots_max(work.lane):
            return f"it needs {work.slots} slots, and an engine lends at most {self.slots_max(work.lane)}"
        tokens = work.prompt_tokens + work.output_tokens_max
        if tokens > self.tokens_max:
            return (
                f"prompt ({work.prompt_tokens} tokens) and max_tokens ({work.output_tokens_max}) exceed"
                f" the {self.tokens_max} tokens of the engine"
            )
        kv_tokens_max = max(engine.ledger.kv_tokens_max for engine in self.engines)
        if tokens * work.slots > kv_tokens_max:
            return f"it needs {tokens * work.slots} tokens of KV cache, and the engine has {kv_tokens_max:.0f}"
        return ""

    def by_load(self) -> Iterator[Engine]:
        """The engines that are up, least loaded first."""
        if len(self.engines) == 1:
            return iter(self.engines if self.engines[0].up else ())
        return iter(sorted((engine for engine in self.engines if engine.up), key=lambda engine: engine.load))

    def lendable(self, now_s: float, engine: Engine, online_slots: int) -> float:
        """How many slots backfill may take now, over all engines, once online has taken so many on `engine`."""
        return sum(
            max(0, each.lendable(now_s, online_slots if each is engine else 0)) for each in self.engines if each.up
        )
