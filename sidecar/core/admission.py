"""Who may wait. What can never run is refused, and what is late; and every lane of a model has a bound.

Where a lane is full nobody may fill it for all: whoever has most waiting, per weight, is refused, or the newest of what
it has waiting leaves to let another one in. What has begun to run does not leave.
"""

from __future__ import annotations

from collections.abc import Collection

from sidecar.core.events import Reject, RejectReason
from sidecar.core.item import Item
from sidecar.core.pool import Pool
from sidecar.core.settings import SchedulerSettings
from sidecar.core.timers import Timers
from sidecar.core.work import OFFLINE, Work

NAME_CHARS_MAX = 256  # of a tenant, a job, a model, a prefix: callers choose them, and they are kept


CLOSING = Reject(reason=RejectReason.CLOSING, message="this sidecar is shutting down")
EXPIRED = Reject(reason=RejectReason.EXPIRED, message="the deadline passed while it waited")
CUT_OFF = Reject(reason=RejectReason.EXPIRED, message="the deadline passed before it was complete")


class Admission:
    """Decides about arrivals. It keeps nothing between two of them."""

    __slots__ = ("_settings", "_timers")

    def __init__(self, settings: SchedulerSettings, timers: Timers) -> None:
        self._settings = settings
        self._timers = timers

    def unknown_model(self, work: Work, models: Collection[str]) -> Reject:
        """What to say where no engine serves the model."""
        name = work.model if len(work.model) <= NAME_CHARS_MAX else f"{work.model[:NAME_CHARS_MAX]}…"
        message = f"no engine serves model {name}; known: {sorted(models)}"
        return Reject(reason=RejectReason.UNKNOWN_MODEL, message=message)

    def engine_down(self, model: str) -> Reject:
        """What to say where nobody can run it now."""
        return Reject(reason=RejectReason.ENGINE_DOWN, message=f"no engine of model {model} is up")

    def refusal(self, work: Work, pool: Pool, now_s: float) -> Reject | None:
        """Why `work` may not wait here whoever else does, or None."""
        if why := _too_long(work) or pool.holds(work):
            return Reject(reason=RejectReason.TOO_LARGE, message=why)
        if work.lane is not OFFLINE and not pool.up:
            return self.engine_down(work.model)
        if self._timers.expired(work, now_s):
            return Reject(reason=RejectReason.EXPIRED, message="the deadline had passed when it arrived")
        account = pool.queue(work.lane).tenants.known(work.tenant)
        if account and (why := account.refuses()):
            hint_s = pool.pace[work.lane].gone_in_s(account.works - account.in_flight, now_s)
            return Reject(reason=RejectReason.QUEUE_FULL, message=why, retry_after_s=hint_s)
        return None

    def is_full(self, work: Work, pool: Pool) -> bool:
        """True if as many wait in the lane of `work` as may."""
        if work.lane is OFFLINE:
            return pool.offline_load >= self._settings.offline_queue_max
        return pool.online.waiting >= self._settings.online_queue_max

    def queue_full(self, work: Work, pool: Pool, now_s: float) -> Reject:
        """What to say to whom a full lane has no room for."""
        waiting = pool.offline_load if work.lane is OFFLINE else pool.online.waiting
        return Reject(
            reason=RejectReason.QUEUE_FULL,
            message=f"{waiting} {work.lane} works wait for model {work.model} already",
            retry_after_s=pool.pace[work.lane].gone_in_s(waiting, now_s),
        )

    def crowded_out(self, work: Work, pool: Pool) -> Item | None:
        """The work that leaves a full lane so that `work` may wait; None if `work` has to go itself."""
        tenants = pool.queue(work.lane).tenants
        largest = tenants.largest()
        if largest is None or tenants.crowding_with(work.tenant) >= largest.crowding:
            return None
        return largest.waiting.newest()


def _too_long(work: Work) -> str:
    """Which of its names is too long to be kept, in words without that name; "" if none is."""
    for what in ("tenant", "job", "prefix_key"):
        if len(getattr(work, what)) > NAME_CHARS_MAX:
            return f"its {what} has {len(getattr(work, what))} characters, and {NAME_CHARS_MAX} may"
    return ""
