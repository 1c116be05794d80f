"""The works that are alive: each waits in the queue of its lane, backs off, or is dispatched, until it is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sidecar.core.events import DeadLetter, Ending, Finished, Reject, RejectReason
from sidecar.core.handling import Handling
from sidecar.core.item import Item, State
from sidecar.core.pool import Pool
from sidecar.core.timers import Timers
from sidecar.core.work import OFFLINE, Work


class Works:
    """All works of one scheduler by id, and how many ended other than well."""

    __slots__ = ("_handling", "_pools", "_timers", "closing", "dead_letters", "items", "rejects")

    def __init__(self, pools: Mapping[str, Pool], timers: Timers, handling: Handling) -> None:
        self._pools = pools
        self._timers = timers
        self._handling = handling
        self.items: dict[str, Item] = {}
        self.closing = False  # nothing offline waits any more
        self.rejects: Counter[RejectReason] = Counter()
        self.dead_letters = 0

    def pool_of(self, item: Item) -> Pool:
        """The model that `item` asks for."""
        return self._pools[item.work.model]

    def enqueue(self, item: Item) -> None:
        """`item` waits from now on."""
        pool, lane, now_s = self.pool_of(item), item.work.lane, self._handling.now_s
        item.waiting_since_s = now_s
        self._timers.waits(item)
        pool.pace[lane].waits(now_s)
        pool.queue(lane).push(item)
        if lane is OFFLINE:
            pool.offline_grew(now_s)
            self._handling.actions += pool.intake()

    def refuse(self, work: Work, refusal: Reject) -> None:
        """`work`, which has just arrived, may not wait."""
        self._say(work.id, refusal, None)

    def finish(self, item: Item, outcome: Ending | Reject | DeadLetter, alone_s: float | None = None) -> None:
        """`item`, which waits, backs off or whose dispatch is over, is over itself."""
        pool, lane, now_s = self.pool_of(item), item.work.lane, self._handling.now_s
        if item.state in (State.WAITING, State.BACKING_OFF):
            self._leave(pool, item)
        else:
            pool.pace[lane].over(now_s)
        item.move(State.GONE)
        pool.queue(lane).gone(item)
        if item.job:
            tokens = item.generated_tokens if outcome is Ending.COMPLETE else 0
            pool.jobs.left(item.job, item.work.deadline_s, tokens, now_s - (item.first_token_s or now_s))
        del self.items[item.work.id]
        self._say(item.work.id, outcome, alone_s)

    def _leave(self, pool: Pool, item: Item) -> None:
        if item.state is State.WAITING:
            pool.queue(item.work.lane).discard(item)
            pool.somebody_left(item.work.lane)
            if item.work.lane is OFFLINE:
                pool.offline_shrank(self._handling.now_s)
        else:
            pool.backing_off -= 1
        self._handling.actions += pool.intake()

    def _say(self, work_id: str, outcome: Ending | Reject | DeadLetter, alone_s: float | None) -> None:
        if isinstance(outcome, Reject):
            self.rejects[outcome.reason] += 1
        elif isinstance(outcome, DeadLetter):
            self.dead_letters += 1
        self._handling.actions.append(Finished(work_id=work_id, outcome=outcome, alone_s=alone_s))
