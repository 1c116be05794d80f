"""What the scheduler does when its time comes: the end of a hold, a retry, and the deadline of a request that waits.

A heap whose entries go stale as requests are dispatched or leave. A stale one is dropped when it surfaces, or in bulk,
so the heap holds at most some twice as many entries as there are requests and holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from sidecar.core.engine import Engine
from sidecar.core.request import OFFLINE, ONLINE, Request
from sidecar.core.settings import OnDeadline, SchedulerSettings
from sidecar.core.tracked_request import RequestState, TrackedRequest


@dataclass(frozen=True, slots=True, eq=False)
class Hold:
    """Slots and KV tokens that an engine may still use after a stream to it broke."""

    engine: Engine
    slots: int
    kv_tokens: int


_Entry = tuple[float, int, TrackedRequest | Hold]


class Timers:
    """The times at which something is to be done though no event comes."""

    __slots__ = ("_entries", "_numbers", "_offline_expires", "_prune_at")

    def __init__(self, settings: SchedulerSettings) -> None:
        self._offline_expires = settings.on_deadline is OnDeadline.EXPIRE
        self._entries: list[_Entry] = []
        self._numbers = count(1)  # of equal times the first that was set is first
        self._prune_at = 64

    def expired(self, request: Request, now_s: float) -> bool:
        """True if the deadline of `request` has passed, and it is not to be run after it."""
        return request.deadline_s <= now_s and self._expires(request)

    def _expires(self, request: Request) -> bool:
        return request.deadline_s < inf and (self._offline_expires or request.lane is ONLINE)

    def hold(self, hold: Hold, until_s: float) -> None:
        """`hold` ends at `until_s`."""
        self._push(until_s, hold)

    def retry(self, tracked: TrackedRequest, when_s: float) -> None:
        """`tracked`, which backs off, waits again at `when_s`."""
        self._push(when_s, tracked)

    def waits(self, tracked: TrackedRequest) -> None:
        """`tracked` waits: should its deadline pass meanwhile, it is due."""
        if not tracked.deadline_set and self._expires(tracked.request):
            tracked.deadline_set = True
            self._push(tracked.request.deadline_s, tracked)

    def next_s(self) -> float:
        """When something may be due next; inf if nothing is set. It may be the deadline of a request that runs then."""
        return self._entries[0][0] if self._entries else inf

    def tidy(self) -> None:
        """Drop what is stale from the front. To be called once per event: `next_s` may be asked any number of times."""
        while self._entries and not _is_live(self._entries[0]):
            heappop(self._entries)

    def any_due(self, now_s: float) -> bool:
        """True if something may be due by now. For the hot path: what was due is asked for only then."""
        return bool(self._entries) and self._entries[0][0] <= now_s

    def due(self, now_s: float) -> Iterator[TrackedRequest | Hold]:
        """What is due by now, in order; each is given once. A request that runs is not due: it is asked when it
        waits."""
        while self._entries and self._entries[0][0] <= now_s:
            _, _, what = heappop(self._entries)
            if isinstance(what, Hold) or what.state in (RequestState.WAITING, RequestState.BACKING_OFF):
                yield what

    def __len__(self) -> int:
        return len(self._entries)

    def _push(self, when_s: float, what: TrackedRequest | Hold) -> None:
        heappush(self._entries, (when_s, next(self._numbers), what))
        if len(self._entries) > self._prune_at:
            self._entries = [entry for entry in self._entries if _is_live(entry)]
            heapify(self._entries)
            self._prune_at = 2 * len(self._entries) + 64


def _is_live(entry: _Entry) -> bool:
    """True if something may have to be done then. Once it is not so, it never is again: nothing depends on when stale
    entries are dropped."""
    what = entry[2]
    if isinstance(what, Hold) or what.request.lane is OFFLINE:
        return isinstance(what, Hold) or what.state is not RequestState.GONE
    return what.state is RequestState.WAITING
