"""What the scheduler looks like at one moment: for gauges, the status page, the demo's table and assertions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.core.engine import Engine, Limit
from sidecar.core.events import RejectReason
from sidecar.core.order import LaneQueue
from sidecar.core.pool import Pool
from sidecar.core.work import GrantKind, Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """One engine. Counters grow from the start of the process; slots add up to `slots`."""

    name: str
    model: str
    up: bool
    slots: int
    slots_online: int
    slots_offline: int
    slots_draining: int
    slots_free: int
    headroom_slots: int
    limit_binding: Limit  # what holds offline back now
    grants: Mapping[GrantKind, int]
    contended: int
    offline_of_contended: int
    credit: int
    turns_due: int
    turns_taken: int
    turns_postponed: int
    turns_lapsed: int
    worst_window_share: float | None  # None before the first window of 2N contended grants
    window_violations: int
    starvation_gap_grants: int
    starvation_gap_s: float

    @property
    def slots_busy(self) -> int:
        """Slots in use or draining."""
        return self.slots - self.slots_free


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSnapshot:
    """One lane of one model: how many wait, and since when the oldest does."""

    model: str
    lane: Lane
    waiting: int
    backing_off: int
    oldest_age_s: float  # 0 when nobody waits
    intake_paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole scheduler."""

    now_s: float
    closing: bool
    engines: Mapping[str, EngineSnapshot]
    lanes: tuple[LaneSnapshot, ...]
    in_flight: int  # dispatches whose terminal event is owed
    rejects: Mapping[RejectReason, int]
    dead_letters: int
    retries: int

    def waiting(self, lane: Lane) -> int:
        """How many works of `lane` wait, over all models."""
        return sum(each.waiting for each in self.lanes if each.lane is lane)


def engine_snapshot(engine: Engine, model: str, now_s: float) -> EngineSnapshot:
    """`engine` as it stands."""
    reservation, record = engine.reservation, engine.reservation.record
    waited_s = 0.0 if engine.offline_waits_since_s is None else now_s - engine.offline_waits_since_s
    return EngineSnapshot(
        name=engine.settings.name,
        model=model,
        up=engine.up,
        slots=engine.settings.slots,
        slots_online=engine.in_use[Lane.ONLINE],
        slots_offline=engine.in_use[Lane.OFFLINE],
        slots_draining=engine.draining,
        slots_free=len(engine.free),
        headroom_slots=engine.settings.slots_online_min,
        limit_binding=engine.limit_binding,
        grants=dict(engine.grants),
        contended=record.contended,
        offline_of_contended=record.offline,
        credit=reservation.credit,
        turns_due=reservation.turns_due,
        turns_taken=reservation.turns_taken,
        turns_postponed=0,
        turns_lapsed=reservation.turns_lapsed,
        worst_window_share=record.worst_window_share,
        window_violations=record.window_violations,
        starvation_gap_grants=record.starvation_gap,
        starvation_gap_s=max(engine.starvation_gap_s, waited_s),
    )


def lane_snapshots(pool: Pool, now_s: float) -> tuple[LaneSnapshot, ...]:
    """Both lanes of `pool` as they stand. O(waiting): meant for some calls per second, not for each event."""
    return tuple(_lane_snapshot(pool, lane, now_s) for lane in Lane)


def _lane_snapshot(pool: Pool, lane: Lane, now_s: float) -> LaneSnapshot:
    queue: LaneQueue = pool.queue(lane)
    return LaneSnapshot(
        model=pool.model,
        lane=lane,
        waiting=len(queue),
        backing_off=pool.backing_off if lane is Lane.OFFLINE else 0,
        oldest_age_s=max((now_s - item.work.arrived_s for item in queue), default=0.0),
        intake_paused=pool.intake_paused and lane is Lane.OFFLINE,
    )
