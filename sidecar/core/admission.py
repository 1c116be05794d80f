"""Who may wait. What can never run is refused, and what is late; and every lane of a model has a bound.

Where a lane is full nobody may fill it for all: whoever has most waiting, per weight, is refused, or the newest of what
it has waiting leaves to let another one in. What has begun to run does not leave.
"""

from __future__ import annotations

from collections.abc import Collection

from sidecar.core.events import Reject, RejectReason
from sidecar.core.request import OFFLINE, Request
from sidecar.core.served_model import ServedModel
from sidecar.core.settings import SchedulerSettings
from sidecar.core.timers import Timers
from sidecar.core.tracked_request import TrackedRequest

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

    def unknown_model(self, request: Request, models: Collection[str]) -> Reject:
        """What to say where no engine serves the model."""
        name = request.model if len(request.model) <= NAME_CHARS_MAX else f"{request.model[:NAME_CHARS_MAX]}…"
        message = f"no engine serves model {name}; known: {sorted(models)}"
        return Reject(reason=RejectReason.UNKNOWN_MODEL, message=message)

    def engine_down(self, model: str) -> Reject:
        """What to say where nobody can run it now."""
        return Reject(reason=RejectReason.ENGINE_DOWN, message=f"no engine of model {model} is up")

    def refusal(self, request: Request, served: ServedModel, now_s: float) -> Reject | None:
        """Why `request` may not wait here whoever else does, or None."""
        if why := _too_long(request) or served.holds(request):
            return Reject(reason=RejectReason.TOO_LARGE, message=why)
        if request.lane is not OFFLINE and not served.up:
            return self.engine_down(request.model)
        if self._timers.expired(request, now_s):
            return Reject(reason=RejectReason.EXPIRED, message="the deadline had passed when it arrived")
        account = served.queue(request.lane).tenants.known(request.tenant)
        if account and (why := account.refuses()):
            hint_s = served.pace[request.lane].gone_in_s(account.requests - account.in_flight, now_s)
            return Reject(reason=RejectReason.QUEUE_FULL, message=why, retry_after_s=hint_s)
        return None

    def is_full(self, request: Request, served: ServedModel) -> bool:
        """True if as many wait in the lane of `request` as may."""
        if request.lane is OFFLINE:
            return served.offline_load >= self._settings.offline_queue_max
        return served.online.waiting >= self._settings.online_queue_max

    def queue_full(self, request: Request, served: ServedModel, now_s: float) -> Reject:
        """What to say to whom a full lane has no room for."""
        waiting = served.offline_load if request.lane is OFFLINE else served.online.waiting
        return Reject(
            reason=RejectReason.QUEUE_FULL,
            message=f"{waiting} {request.lane} requests wait for model {request.model} already",
            retry_after_s=served.pace[request.lane].gone_in_s(waiting, now_s),
        )

    def crowded_out(self, request: Request, served: ServedModel) -> TrackedRequest | None:
        """The request that leaves a full lane so that `request` may wait; None if `request` has to go itself."""
        tenants = served.queue(request.lane).tenants
        largest = tenants.largest()
        if largest is None or tenants.crowding_with(request.tenant) >= largest.crowding:
            return None
        return largest.waiting.newest()


def _too_long(request: Request) -> str:
    """Which of its names is too long to be kept, in words without that name; "" if none is."""
    for what in ("tenant", "job", "prefix_key"):
        if len(getattr(request, what)) > NAME_CHARS_MAX:
            return f"its {what} has {len(getattr(request, what))} characters, and {NAME_CHARS_MAX} may"
    return ""
