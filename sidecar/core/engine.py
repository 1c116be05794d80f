"""What the scheduler books about one engine: who has its slots, which are free, and what offline is owed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from sidecar.core.item import Item
from sidecar.core.reservation import Reservation
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.window import FreeSlots
from sidecar.core.work import GrantKind, Lane


class Limit(StrEnum):
    """Which rule holds offline back on an engine now."""

    NONE = "none"
    DOWN = "down"  # the engine takes no work
    NO_OFFLINE = "no offline"  # nothing offline waits
    ONLINE_WAITS = "online waits"  # what comes free is online's
    TURN = "turn"  # a due turn needs more slots than are free
    SLOTS = "slots"
    HEADROOM = "headroom"
    WINDOW = "window"


@dataclass(slots=True, eq=False)
class Engine:
    """One engine. Always: slots in use by both lanes + draining + free = slots owned."""

    settings: EngineSettings
    free: FreeSlots
    reservation: Reservation
    up: bool = False
    in_use: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    draining: int = 0
    grants: dict[GrantKind, int] = field(default_factory=lambda: dict.fromkeys(GrantKind, 0))
    offline_waits_since_s: float | None = None  # since its last offline grant, or since its offline queue filled
    starvation_gap_s: float = 0.0  # the longest such wait so far
    limit_binding: Limit = Limit.DOWN

    @classmethod
    def of(cls, engine: EngineSettings, scheduler: SchedulerSettings) -> Engine:
        """An engine that is down, with all its slots free."""
        return cls(
            settings=engine,
            free=FreeSlots(engine.slots),
            reservation=Reservation(scheduler.reservation_every, scheduler.reservation_turns_max),
        )

    @property
    def load(self) -> float:
        """Which share of its slots is not free."""
        return 1.0 - len(self.free) / self.settings.slots

    def lendable(self, now_s: float, online_slots: int = 0) -> int:
        """How many slots backfill may take now, once online has taken `online_slots`: ripe, beyond the headroom."""
        ripe, free = self.free.ripe(now_s), len(self.free)
        return min(ripe - max(0, online_slots - (free - ripe)), free - online_slots - self.settings.slots_online_min)

    def limit(self, item: Item, now_s: float) -> Limit:
        """What keeps backfill from giving `item` its slots now."""
        slots, free = item.work.slots, len(self.free)
        if slots > free:
            return Limit.SLOTS
        if slots > free - self.settings.slots_online_min:
            return Limit.HEADROOM
        return Limit.WINDOW if slots > self.free.ripe(now_s) else Limit.NONE

    def begin(self, item: Item, kind: GrantKind) -> None:
        """`item` has its slots."""
        slots = item.work.slots
        if kind in (GrantKind.ONLINE, GrantKind.RESERVED):
            self.free.take(slots)
        else:
            self.free.take_ripe(slots)
        self.in_use[item.work.lane] += slots
        self.grants[kind] += 1
        item.engine = self

    def drain(self, item: Item) -> None:
        """`item` was told to stop: its slots are no longer in use, and not free yet."""
        self.in_use[item.work.lane] -= item.work.slots
        self.draining += item.work.slots

    def starved_until(self, now_s: float) -> None:
        """Offline gets a slot now, or its queue is empty: the wait that ends here is measured."""
        if self.offline_waits_since_s is not None:
            self.starvation_gap_s = max(self.starvation_gap_s, now_s - self.offline_waits_since_s)
            self.offline_waits_since_s = None
