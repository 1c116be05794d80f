"""Who gets a slot next, and whose slot is taken back: the rules, in their order.

Online comes first, unless offline would go without and its reserved dispatch is due; what online leaves is backfill's,
as far as the limits of the engine let it. Then offline yields to the online work that is there, and what online still
lacks is reclaimed from running slices.
"""

from __future__ import annotations

from sidecar.core import limits
from sidecar.core.engine import Engine, Limit
from sidecar.core.events import Action, Dispatch, Preempt
from sidecar.core.lane_queue import LaneQueue
from sidecar.core.request import OFFLINE, DispatchKind
from sidecar.core.served_model import ServedModel
from sidecar.core.settings import ReservationMode, SchedulerSettings
from sidecar.core.tracked_request import RequestState, TrackedRequest

# The limits that hold offline back for the sake of resident online work.
ROW_LIMITS = (Limit.YIELD, Limit.PRICE)


class Dispatcher:
    """Fills the free slots of one model at a time. It keeps nothing between two calls of `fill`."""

    __slots__ = ("_actions", "_now_s", "_settings")

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._now_s = 0.0
        self._actions: list[Action] = []

    def fill(self, served: ServedModel, now_s: float, actions: list[Action]) -> None:
        """Dispatch until nothing more can be dispatched; then take back what online lacks. It is added to `actions`."""
        self._now_s, self._actions = now_s, actions
        online, offline = served.online, served.offline
        for engine in served.engines:
            if engine.free.slots:
                engine.advance(now_s)
        while (online.waiting or offline.waiting) and self._dispatch_anywhere(served):
            pass
        if not offline.waiting:
            self._nobody_offline(served)
        able = online.eligible() if online.waiting else 0
        for engine in served.engines:
            self._make_yield(engine, able)
            for each in engine.neighbours:
                self._make_yield(each, able)
        if able and self._settings.preempt:
            self._reclaim(served)

    @staticmethod
    def _nobody_offline(served: ServedModel) -> None:
        """Nothing holds offline back where nothing offline waits, whatever held back the last one."""
        for engine in served.engines:
            if engine.up:
                engine.limit_binding = Limit.NO_OFFLINE

    def _dispatch_anywhere(self, served: ServedModel) -> bool:
        """One dispatch on the least loaded engine that may have one; False if none may."""
        for engine in served.by_load():  # noqa: SIM110 - a generator would be made for each event
            if self._dispatch_one(served, engine):
                return True
        return False

    def _dispatch_one(self, served: ServedModel, engine: Engine) -> bool:
        """Make one dispatch on this engine if the first rule that holds allows it; `limit_binding` names that rule."""
        if not engine.free.slots:  # the usual case on a busy engine, worth being quick
            waits = Limit.SLOTS if served.offline.eligible() else self._nobody(served.offline)
            engine.limit_binding = Limit.ONLINE_WAITS if served.online.eligible() else waits
            return False
        long = engine.takes_long
        online = served.online.head(long=long) if served.online.waiting else None
        offline = served.offline.head(long=long)
        too_large = False
        if len(served.engines) > 1:  # with one engine, what cannot run on it has been refused
            online = None if online and engine.refuses(online.request) else online
            too_large = offline is not None and engine.refuses(offline.request) != ""
        if online:
            return self._dispatch_contested(served, engine, online, None if too_large else offline)
        if offline is None or too_large:
            engine.limit_binding = Limit.TOO_LARGE if too_large else self._nobody(served.offline)
            return False
        engine.limit_binding = limit = limits.find_limit(engine, offline, self._now_s)
        if limit is Limit.PREFILL:
            engine.prefill_next_s = limits.prefill_next_s(engine, offline)
        if limit in ROW_LIMITS and self._may_take_reserved_early(engine, offline):
            self._dispatch(served, engine, offline, DispatchKind.RESERVED, contended=True)
            return True
        if limit is not Limit.NONE or self._is_wanted_at_home(served, offline, engine):
            return False
        kind = DispatchKind.RESUME if offline.generated_tokens else DispatchKind.BACKFILL
        self._dispatch(served, engine, offline, kind)
        return True

    @staticmethod
    def _may_take_reserved_early(engine: Engine, offline: TrackedRequest) -> bool:
        """True if a reserved dispatch is due that only resident online work keeps from being taken, and `offline` can
        go on at once.

        Now it costs that work one row; at the next arrival it would cost a prefill beside the arrival's own.
        """
        due = engine.reservation.due and engine.online_slots > 0
        return due and engine.remembers(offline) and engine.fits(offline)

    def _is_wanted_at_home(self, served: ServedModel, tracked: TrackedRequest, engine: Engine) -> bool:
        """True if another engine, which remembers `tracked` or is the home of its prefix, can take it now as well."""
        if len(served.engines) == 1:
            return False
        home = served.engine_named(tracked.cached_on) or served.placement.home(tracked.request.prefix_key)
        if home is None or home is engine or not home.up or home.refuses(tracked.request):
            return False
        return limits.find_limit(home, tracked, self._now_s) is Limit.NONE

    @staticmethod
    def _nobody(queue: LaneQueue) -> Limit:
        """Why nobody of `queue` may have a slot."""
        if queue.eligible():
            return Limit.PREFILL
        return Limit.TENANT if queue.waiting else Limit.NO_OFFLINE

    def _dispatch_contested(
        self, served: ServedModel, engine: Engine, online: TrackedRequest, offline: TrackedRequest | None
    ) -> bool:
        """Online waits for this engine: a slot is online's, unless a reserved dispatch is due to offline."""
        engine.limit_binding = Limit.ONLINE_WAITS
        able = offline is not None and engine.could_fit(offline)
        contended = able and offline is not None and self._would_wait(served, engine, online, offline)
        if contended and offline and engine.reservation.due and not self._postpone(engine, online):
            if not engine.fits(offline):  # what is free is kept for it, or a wide request would never be dispatched
                engine.limit_binding = Limit.RESERVED_DISPATCH
                return False
            self._dispatch(served, engine, offline, DispatchKind.RESERVED, contended=True)
            return True
        if not engine.fits(online):
            return False
        self._dispatch(served, engine, online, DispatchKind.ONLINE, contended=contended)
        if contended:
            engine.reservation.online_dispatched(self._now_s)
        return True

    def _would_wait(self, served: ServedModel, engine: Engine, online: TrackedRequest, offline: TrackedRequest) -> bool:
        """True if `offline` keeps waiting once `online` and all online work behind it have had their slots."""
        if not engine.fits(online) or not limits.kv_leaves(engine, online, offline):
            return True
        online_slots = online.request.slots + served.online.eligible(long=engine.takes_long) - 1
        lent = served.lendable(self._now_s, engine, online_slots)
        return lent < offline.request.slots or not limits.has_room(engine, offline)

    def _postpone(self, engine: Engine, online: TrackedRequest) -> bool:
        """Put off a due reserved dispatch, in mode `yielding` while online's objective is at risk. False if not."""
        if self._settings.reservation_mode is ReservationMode.FIRM:
            return False
        # The measured origin's rule: a wait at the head of the line stays below 40 % of the objective.
        objective_ms = online.request.ttft_objective_ms or self._settings.ttft_objective_ms
        at_risk = self._now_s - online.request.arrived_s > 0.4 * objective_ms / 1000
        return at_risk and engine.reservation.postpone(self._now_s, self._settings.postpone_max_s)

    def _dispatch(
        self,
        served: ServedModel,
        engine: Engine,
        tracked: TrackedRequest,
        kind: DispatchKind,
        *,
        contended: bool = False,
    ) -> None:
        tracked.move(RequestState.RUNNING)
        served.queue(tracked.request.lane).dispatch(tracked)
        served.somebody_left(tracked.request.lane)
        engine.begin(tracked, kind, self._now_s)
        self._actions.append(
            Dispatch(
                request_id=tracked.request.id,
                engine=engine.settings.name,
                kind=kind,
                slots=tracked.request.slots,
                output_tokens=tracked.budget_tokens,
                queue_wait_s=self._now_s - tracked.waiting_since_s,
                contended=contended,
                prompt_tokens=tracked.prompt_tokens,
            )
        )
        if tracked.request.lane is OFFLINE:
            if kind is DispatchKind.RESERVED:
                engine.reservation.take_reserved()
            engine.starved_until(self._now_s)
            served.offline_shrank(self._now_s)
            self._actions += served.intake()

    # ---- taking slots back -------------------------------------------------------------------------------------------

    def _make_yield(self, engine: Engine, online_waiting: int) -> None:
        """Stop the offline rows beyond those that may stay while online is resident."""
        rows = engine.in_use[OFFLINE]
        if not rows:
            return
        rows_max = limits.yields_to(engine, online_waiting, self._now_s)
        if not engine.room.chunk_tokens:
            for tracked in [each for each in engine.residents.values() if each.fills_cache and each.may_be_stopped]:
                rows -= tracked.request.slots
                self._preempt(engine, tracked)
        if rows <= rows_max:
            return
        for tracked in engine.victims(rows - int(rows_max), 0, sticky_after=None):
            engine.counts.yields += 1
            self._preempt(engine, tracked)

    def _reclaim(self, served: ServedModel) -> None:
        """Stop as many slices as online lacks slots or KV for, counting what is coming free already."""
        engines = [engine for engine in served.engines if engine.up]
        long = any(engine.takes_long for engine in engines)
        head = served.online.head(long=long)
        if head is None:
            return
        lacking = (
            head.request.slots + served.online.eligible(long=long) - 1 - sum(engine.coming_slots for engine in engines)
        )
        for engine in sorted(engines, key=lambda each: -len(each.residents)):
            # A reserved dispatch takes the first slot that comes free.
            reserved = engine.reservation.due and served.offline.eligible() > 0
            room = self._settings.preempt_max - engine.stopping
            victims = engine.victims(lacking + reserved, engine.lacking_kv(head), self._settings.preempt_sticky_after)
            for tracked in victims[:room]:
                tracked.preemptions += 1
                engine.counts.preemptions += 1
                lacking -= tracked.request.slots
                self._preempt(engine, tracked)

    def _preempt(self, engine: Engine, tracked: TrackedRequest) -> None:
        tracked.move(RequestState.PREEMPTING)
        tracked.stop_asked_s = self._now_s
        engine.drain(tracked)
        engine.stopping += 1
        self._actions.append(Preempt(request_id=tracked.request.id, engine=engine.settings.name))
