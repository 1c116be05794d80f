"""The works that are alive: each waits in the queue of its lane, backs off, or is dispatched, until it is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sidecar.core.admission import Refusal
from sidecar.core.events import DeadLetter, Reject, RejectReason
from sidecar.core.handling import Handling
from sidecar.core.item import Item, State
from sidecar.core.pool import Pool
from sidecar.core.timers import Timers
from sidecar.core.work import OFFLINE


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

    def refuse(self, item: Item, refusal: Refusal) -> None:
        """Reject a work that waits or backs off."""
        self.leave(item)
        self.reject(item.work.id, refusal)

    def reject(self, work_id: str, refusal: Refusal) -> None:
        """A work that is gone, or never waited, is rejected."""
        self.rejects[refusal.reason] += 1
        self._handling.actions.append(
            Reject(
                work_id=work_id,
                reason=refusal.reason,
                message=refusal.message,
                retry_after_s=refusal.retry_after_s,
            )
        )

    def leave(self, item: Item) -> None:
        """A work that waits or backs off is gone."""
        pool, lane = self.pool_of(item), item.work.lane
        if item.state is State.WAITING:
            pool.queue(lane).discard(item)
            pool.somebody_left(lane)
            if lane is OFFLINE:
                pool.offline_shrank(self._handling.now_s)
        else:
            pool.backing_off -= 1
        self._handling.actions += pool.intake()
        self.gone(item)

    def bury(self, item: Item, reason: str) -> None:
        """A work whose dispatch is over will not be tried again."""
        self.gone(item)
        self.dead_letters += 1
        attempts = max(item.attempts, item.losses)
        self._handling.actions.append(DeadLetter(work_id=item.work.id, reason=reason, attempts=attempts))

    def gone(self, item: Item, *, complete: bool = False) -> None:
        """A work is over."""
        pool = self.pool_of(item)
        if item.state not in (State.WAITING, State.BACKING_OFF):
            pool.pace[item.work.lane].over(self._handling.now_s)
        item.move(State.GONE)
        pool.queue(item.work.lane).gone(item)
        if item.job:
            tokens = item.generated_tokens if complete else 0
            stay_s = self._handling.now_s - (item.first_token_s or self._handling.now_s)
            pool.jobs.left(item.job, item.work.deadline_s, tokens, stay_s)
        del self.items[item.work.id]
