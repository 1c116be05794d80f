"""Who has a slot next, and whose slot is taken back: the rules, in their order.

Online comes first, unless offline would go without and its turn is due; what online leaves is backfill's, as far as the
limits of the engine let it. Then offline yields to the online work that is there, and what online still lacks is
reclaimed from running slices.
"""

from __future__ import annotations

from sidecar.core import lending
from sidecar.core.engine import Engine, Limit
from sidecar.core.events import Action, Dispatch, Preempt
from sidecar.core.item import Item, State
from sidecar.core.order import LaneQueue
from sidecar.core.pool import Pool
from sidecar.core.settings import ReservationMode, SchedulerSettings
from sidecar.core.work import OFFLINE, GrantKind

# The limits that hold offline back for the sake of resident online work.
ROW_LIMITS = (Limit.YIELD, Limit.LATENCY, Limit.AIMD)


class Grants:
    """Fills the free slots of one model at a time. It keeps nothing between two calls of `fill`."""

    __slots__ = ("_actions", "_now_s", "_settings")

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._now_s = 0.0
        self._actions: list[Action] = []

    def fill(self, pool: Pool, now_s: float, actions: list[Action]) -> None:
        """Grant until nothing more can be granted; then take back what online lacks. It is added to `actions`."""
        self._now_s, self._actions = now_s, actions
        online, offline = pool.online, pool.offline
        for engine in pool.engines:
            if engine.free.slots:
                engine.advance(now_s)
        while (online.waiting or offline.waiting) and self._grant_anywhere(pool):
            pass
        if not offline.waiting:
            self._nobody_offline(pool)
        able = online.eligible() if online.waiting else 0
        for engine in pool.engines:
            self._make_yield(engine, able)
            for each in engine.neighbours:
                self._make_yield(each, able)
        if able and self._settings.preempt:
            self._reclaim(pool)

    @staticmethod
    def _nobody_offline(pool: Pool) -> None:
        """Nothing holds offline back where nothing offline waits, whatever held back the last one."""
        for engine in pool.engines:
            if engine.up:
                engine.limit_binding = Limit.NO_OFFLINE

    def _grant_anywhere(self, pool: Pool) -> bool:
        """One grant on the least loaded engine that may have one; False if none may."""
        for engine in pool.by_load():  # noqa: SIM110 - a generator would be made for each event
            if self._grant_one(pool, engine):
                return True
        return False

    def _grant_one(self, pool: Pool, engine: Engine) -> bool:
        """One grant on this engine if the first rule that holds allows one. The rule is kept as `limit_binding`."""
        if not engine.free.slots:  # the usual case on a busy engine, worth being quick
            waits = Limit.SLOTS if pool.offline.eligible() else self._nobody(pool.offline)
            engine.limit_binding = Limit.ONLINE_WAITS if pool.online.eligible() else waits
            return False
        long = engine.takes_long
        online = pool.online.head(long=long) if pool.online.waiting else None
        offline = pool.offline.head(long=long)
        too_large = False
        if len(pool.engines) > 1:  # with one engine, what cannot run on it has been refused
            online = None if online and engine.refuses(online.work) else online
            too_large = offline is not None and engine.refuses(offline.work) != ""
        if online:
            return self._grant_contested(pool, engine, online, None if too_large else offline)
        if offline is None or too_large:
            engine.limit_binding = Limit.TOO_LARGE if too_large else self._nobody(pool.offline)
            return False
        engine.limit_binding = limit = lending.find_limit(engine, offline, self._now_s)
        if limit is Limit.PREFILL:
            engine.prefill_next_s = lending.prefill_next_s(engine, offline)
        if limit in ROW_LIMITS and self._may_take_turn_early(engine, offline):
            self._grant(pool, engine, offline, GrantKind.RESERVED, contended=True)
            return True
        if limit is not Limit.NONE or self._is_wanted_at_home(pool, offline, engine):
            return False
        self._grant(pool, engine, offline, GrantKind.RESUME if offline.generated_tokens else GrantKind.BACKFILL)
        return True

    @staticmethod
    def _may_take_turn_early(engine: Engine, offline: Item) -> bool:
        """True if a turn is due that only resident online work keeps from being taken, and `offline` can go on at once.

        Now it costs that work one row; at the next arrival it would cost a prefill beside the arrival's own.
        """
        due = engine.reservation.due and engine.online_slots > 0
        return due and engine.remembers(offline) and engine.fits(offline)

    def _is_wanted_at_home(self, pool: Pool, item: Item, engine: Engine) -> bool:
        """True if another engine, which remembers `item` or is the home of its prefix, can take it now as well."""
        if len(pool.engines) == 1:
            return False
        home = pool.engine_named(item.cached_on) or pool.placement.home(item.work.prefix_key)
        if home is None or home is engine or not home.up or home.refuses(item.work):
            return False
        return lending.find_limit(home, item, self._now_s) is Limit.NONE

    @staticmethod
    def _nobody(queue: LaneQueue) -> Limit:
        """Why nobody of `queue` may have a slot."""
        if queue.eligible():
            return Limit.PREFILL
        return Limit.TENANT if queue.waiting else Limit.NO_OFFLINE

    def _grant_contested(self, pool: Pool, engine: Engine, online: Item, offline: Item | None) -> bool:
        """Online waits for this engine: a slot is online's, unless offline must go without and its turn is due."""
        engine.limit_binding = Limit.ONLINE_WAITS
        able = offline is not None and engine.could_fit(offline)
        contended = able and offline is not None and self._would_wait(pool, engine, online, offline)
        if contended and offline and engine.reservation.due and not self._postpone(engine, online):
            if not engine.fits(offline):  # what is free is kept for it, or a wide item would never get its turn
                engine.limit_binding = Limit.TURN
                return False
            self._grant(pool, engine, offline, GrantKind.RESERVED, contended=True)
            return True
        if not engine.fits(online):
            return False
        self._grant(pool, engine, online, GrantKind.ONLINE, contended=contended)
        if contended:
            engine.reservation.online_granted(self._now_s)
        return True

    def _would_wait(self, pool: Pool, engine: Engine, online: Item, offline: Item) -> bool:
        """True if `offline` keeps waiting once `online` and all online work behind it have had their slots."""
        if not engine.fits(online) or not lending.kv_leaves(engine, online, offline):
            return True
        if not lending.prefill_harmless(engine, offline, beside_online=True):
            return True
        online_slots = online.work.slots + pool.online.eligible(long=engine.takes_long) - 1
        return pool.lendable(self._now_s, engine, online_slots) < offline.work.slots

    def _postpone(self, engine: Engine, online: Item) -> bool:
        """Put off a turn that is due, in mode `yielding` while online's objective is at risk. Return False if not."""
        if self._settings.reservation_mode is ReservationMode.FIRM:
            return False
        # The measured origin's rule: a wait at the head of the line stays below 40 % of the objective.
        objective_ms = online.work.ttft_objective_ms or self._settings.ttft_objective_ms
        at_risk = self._now_s - online.work.arrived_s > 0.4 * objective_ms / 1000
        return at_risk and engine.reservation.postpone(self._now_s, self._settings.postpone_max_s)

    def _grant(self, pool: Pool, engine: Engine, item: Item, kind: GrantKind, *, contended: bool = False) -> None:
        item.move(State.RUNNING)
        pool.queue(item.work.lane).grant(item)
        pool.somebody_left(item.work.lane)
        engine.begin(item, kind, self._now_s)
        self._actions.append(
            Dispatch(
                work_id=item.work.id,
                engine=engine.settings.name,
                kind=kind,
                slots=item.work.slots,
                output_tokens=item.budget_tokens,
                queue_wait_s=self._now_s - item.waiting_since_s,
                contended=contended,
                prompt_tokens=item.prompt_tokens,
            )
        )
        if item.work.lane is OFFLINE:
            if kind is GrantKind.RESERVED:
                engine.reservation.turn_taken()
            engine.starved_until(self._now_s)
            pool.offline_shrank(self._now_s)
            self._actions += pool.intake()

    # ---- taking slots back -------------------------------------------------------------------------------------------

    def _make_yield(self, engine: Engine, online_waiting: int) -> None:
        """Stop the offline rows beyond those that may stay while online is resident."""
        rows = engine.in_use[OFFLINE]
        if not rows or rows <= (rows_max := lending.yields_to(engine, online_waiting, self._now_s)):
            return
        for item in engine.victims(rows - int(rows_max), 0, sticky_after=None):
            engine.counts.yields += 1
            self._preempt(engine, item)

    def _reclaim(self, pool: Pool) -> None:
        """Stop as many slices as online lacks slots or KV for, counting what is coming free already."""
        engines = [engine for engine in pool.engines if engine.up]
        long = any(engine.takes_long for engine in engines)
        head = pool.online.head(long=long)
        if head is None:
            return
        lacking = head.work.slots + pool.online.eligible(long=long) - 1 - sum(engine.coming_slots for engine in engines)
        for engine in sorted(engines, key=lambda each: -len(each.residents)):
            turn = engine.reservation.due and pool.offline.eligible() > 0  # it takes the first slot that comes free
            room = self._settings.preempt_max - engine.stopping
            victims = engine.victims(lacking + turn, engine.lacking_kv(head), self._settings.preempt_sticky_after)
            for item in victims[:room]:
                item.preemptions += 1
                engine.counts.preemptions += 1
                lacking -= item.work.slots
                self._preempt(engine, item)

    def _preempt(self, engine: Engine, item: Item) -> None:
        item.move(State.PREEMPTING)
        item.stop_asked_s = self._now_s
        engine.drain(item)
        engine.stopping += 1
        self._actions.append(Preempt(work_id=item.work.id, engine=engine.settings.name))
