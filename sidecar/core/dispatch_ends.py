"""What becomes of a dispatch that is over: its slots are free, and its work is over, waits anew, or is tried again."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.core.admission import CLOSING, CUT_OFF
from sidecar.core.engine import Engine
from sidecar.core.events import DeadLetter, Ended, Ending, Failed, Lost, Stopped
from sidecar.core.handling import Handling
from sidecar.core.item import Item, State
from sidecar.core.pool import Pool
from sidecar.core.settings import SchedulerSettings
from sidecar.core.timers import Hold, Timers
from sidecar.core.work import ONLINE, EndReason
from sidecar.core.works import Works

RETRY_BACKOFF_MAX_S = 30.0


class DispatchEnds:
    """Takes in the terminal events. Each method returns the model in which there may be more to grant now.

    Each raises ValueError if the work is not dispatched.
    """

    __slots__ = ("_engines", "_handling", "_pools", "_settings", "_timers", "_works", "retries")

    def __init__(
        self,
        settings: SchedulerSettings,
        engines: Mapping[str, Engine],
        pools: Mapping[str, Pool],
        works: Works,
        timers: Timers,
        handling: Handling,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._pools = pools
        self._works = works
        self._timers = timers
        self._handling = handling
        self.retries = 0

    def confirmed(self, event: Ended | Stopped, reason: EndReason) -> Pool:
        """The engine confirmed the end of a dispatch: the slots are free; what is not complete waits again."""
        item, engine, pool = self._running(event.work_id)
        now_s, stopped, alone_s = self._handling.now_s, isinstance(event, Stopped), _alone_s(item, engine)
        engine.confirmed(item, now_s, event.reused_tokens, event.output_tokens, stopped=stopped)
        if item.work.lane is ONLINE and item.state is State.RUNNING:
            engine.interference.complete(item, event.output_tokens, now_s)
        self._finish(item, engine, pool)
        self._keep(pool, item, event.output_tokens)
        if (ending := _ending(item, reason)) is not None:
            self._works.finish(item, ending, alone_s)
        else:
            item.attempts = item.losses = 0
            self._again(engine, item)
        return pool

    def failed(self, event: Failed) -> Pool:
        """The engine answered with an error: the slots are free, and the tokens of the dispatch are gone."""
        item, engine, pool = self._running(event.work_id)
        alone_s = _alone_s(item, engine)
        engine.counts.discarded_tokens += item.streamed_tokens
        self._finish(item, engine, pool)
        item.attempts += 1
        if (ending := _ending(item, None)) is not None:
            self._works.finish(item, ending, alone_s)
        elif not event.retryable or item.attempts >= self._settings.attempts_max:
            self._bury(item, event.reason)
        else:
            self._back_off(pool, item)
        return pool

    def lost(self, event: Lost) -> Pool:
        """The stream broke: the slots are DRAINING for a while, and what did arrive is kept."""
        item, engine, pool = self._running(event.work_id)
        alone_s = _alone_s(item, engine)
        self._finish(item, engine, pool, held_s=engine.settings.lost_hold_s)
        self._keep(pool, item, event.output_tokens)
        item.lost_on(engine.settings.name)
        item.losses = 0 if event.output_tokens and item.work.resumable else item.losses + 1
        if (ending := _ending(item, EndReason.LENGTH)) is not None:
            self._works.finish(item, ending, alone_s)
        elif item.losses >= self._settings.losses_max:
            self._bury(item, f"the stream to the engine broke {item.losses} times without a token")
        else:
            self._again(engine, item)
        return pool

    def release(self, hold: Hold) -> None:
        """What a dispatch held is free."""
        hold.engine.release(hold.slots, hold.kv_tokens, self._handling.now_s)

    def _running(self, work_id: str) -> tuple[Item, Engine, Pool]:
        """The work whose dispatch is over, and where it ran."""
        item = self._works.items.get(work_id)
        if item is None or not item.engine:
            raise ValueError(f"a terminal event for {work_id}, which is not dispatched")
        return item, self._engines[item.engine], self._pools[item.work.model]

    @staticmethod
    def _keep(pool: Pool, item: Item, tokens: int) -> None:
        """So many tokens of a dispatch that is over stay, and its tenant has paid for them."""
        item.keep(tokens)
        pool.queue(item.work.lane).tenants.streamed(item, 0)

    def _finish(self, item: Item, engine: Engine, pool: Pool, *, held_s: float = 0.0) -> None:
        """The slots of a dispatch that is over are free, or DRAINING for `held_s` more."""
        now_s = self._handling.now_s
        if item.state is State.RUNNING:
            engine.drain(item)
        elif item.state is State.PREEMPTING:
            engine.stopping -= 1
        pool.queue(item.work.lane).finish(item)
        hold = Hold(engine, item.work.slots, engine.leave(item, now_s))
        if held_s > 0:
            self._timers.hold(hold, now_s + held_s)
        else:
            self.release(hold)
        if item.work.lane is ONLINE and not engine.online_slots:
            for each in (engine, *engine.neighbours):
                each.yielding.online_left(pool.arrivals.per_s(now_s), now_s)
            self._handling.stirred += [self._pools[each.settings.model] for each in engine.neighbours]

    def _again(self, engine: Engine, item: Item) -> None:
        """The rest of an offline work waits anew, unless it is given up."""
        if not item.work.resumable:
            engine.counts.discarded_tokens += item.generated_tokens
            item.generated_tokens = 0
        if not self._given_up(item):
            item.move(State.WAITING)
            self._works.enqueue(item)

    def _given_up(self, item: Item) -> bool:
        """Reject an offline work whose dispatch is over, if it may wait no more. Return True if so."""
        if self._works.closing:
            self._works.finish(item, CLOSING)
        elif self._timers.expired(item.work, self._handling.now_s):
            self._works.finish(item, CUT_OFF)
        else:
            return False
        return True

    def _bury(self, item: Item, reason: str) -> None:
        self._works.finish(item, DeadLetter(reason=reason, attempts=max(item.attempts, item.losses)))

    def _back_off(self, pool: Pool, item: Item) -> None:
        if self._given_up(item):
            return
        item.move(State.BACKING_OFF)
        self.retries += 1
        pool.backing_off += 1
        self._handling.actions += pool.intake()
        delay_s = min(self._settings.retry_backoff_s * 2 ** (item.attempts - 1), RETRY_BACKOFF_MAX_S)
        self._timers.retry(item, self._handling.now_s + delay_s)
        self._timers.waits(item)


def _ending(item: Item, reason: EndReason | None) -> Ending | None:
    """How a work is over with a dispatch that ended for `reason` (None = it failed); None if it may be dispatched anew.

    This is the only place that knows the rule.
    """
    if reason is not None and item.work.is_complete(item.generated_tokens, reason):
        return Ending.COMPLETE
    if item.state is State.ABORTING:
        return Ending.CANCELLED
    return Ending.INCOMPLETE if item.work.lane is ONLINE else None


def _alone_s(item: Item, engine: Engine) -> float | None:
    """What an online request would have taken from its grant until now without offline beside it; None = unknown."""
    return engine.interference.guard.alone_s(item.work.id, item.streamed_tokens)
