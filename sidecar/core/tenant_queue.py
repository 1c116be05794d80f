"""Items that wait, by deadline first, then by when their first token is due: what one tenant has waiting.

It is due by the objective that a request states for itself, or else the model's: then the order is that of arrival.

Equal prefixes of the backlog may run together, so that the KV cache still holds what they share: a request then stands
right behind the oldest that waits with its prefix (as BatchLLM and BlendServe order whole batches), if that came fewer
than `prefix_group_window` arrivals and at most `prefix_group_s` before it. So a request is overtaken by fewer others
than that, and by none that came more seconds than that after it: the oldest offset of a partition always moves.

A heap with lazy deletion: push and leave are O(log n), looking at the head is O(1) on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from sidecar.core.request import OFFLINE
from sidecar.core.settings import SchedulerSettings
from sidecar.core.tracked_request import TrackedRequest

_Entry = tuple[float, float, int, int, int, TrackedRequest]


@dataclass(frozen=True, slots=True)
class _Leader:
    """The oldest request of a prefix: how many had arrived with it, when, and its place."""

    number: int
    arrived_s: float
    place: tuple[float, int]


class TenantQueue:
    """A heap of requests. An entry is live while the request still has the ticket that it was pushed with."""

    __slots__ = ("_arrived", "_fresh", "_group_s", "_heap", "_leaders", "_length", "_ttft_objective_s", "_window")

    def __init__(self, settings: SchedulerSettings) -> None:
        self._heap: list[_Entry] = []
        self._length = 0
        self._arrived = 0  # requests so far; one that comes back has arrived before
        self._window = settings.prefix_group_window  # 0 = prefixes do not matter
        self._group_s = settings.prefix_group_s
        self._ttft_objective_s = settings.ttft_objective_ms / 1000
        self._leaders: dict[str, _Leader] = {}  # by prefix: the oldest
        # Tickets and requests that never ran, in the order of arrival.
        self._fresh: list[tuple[int, TrackedRequest]] = []

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[TrackedRequest]:
        """Each request, in no particular order; O(n), for snapshots and for closing."""
        return (entry[5] for entry in self._heap if entry[4] == entry[5].ticket)

    def push(self, tracked: TrackedRequest) -> None:
        """`tracked`, which has a new ticket, waits at the place that its deadline and its objective give it."""
        request = tracked.request
        if tracked.place is None:
            tracked.place = self._place(tracked)
            self._fresh.append((tracked.ticket, tracked))
        heappush(self._heap, (request.deadline_s, *tracked.place, tracked.sequence, tracked.ticket, tracked))
        self._length += 1

    def _place(self, tracked: TrackedRequest) -> tuple[float, int]:
        """When the first token is due of the request that it stands behind, and its sequence; or its own."""
        request, prefix = tracked.request, tracked.request.prefix_key
        own = (request.arrived_s + (request.ttft_objective_ms / 1000 or self._ttft_objective_s), tracked.sequence)
        self._arrived += 1
        if not self._window or not prefix or request.lane is not OFFLINE:
            return own
        leader = self._leaders.get(prefix)
        if leader is not None and leader.place <= own and self._follows(leader, request.arrived_s):
            return leader.place
        if len(self._leaders) >= 2 * self._window:  # at most half of them can still be followed
            last = self._arrived - self._window
            self._leaders = {key: each for key, each in self._leaders.items() if each.number > last}
        self._leaders[prefix] = _Leader(self._arrived, request.arrived_s, own)
        return own

    def _follows(self, leader: _Leader, arrived_s: float) -> bool:
        """True if what arrives now came soon enough after `leader` to overtake those in between."""
        return self._arrived - leader.number < self._window and arrived_s - leader.arrived_s <= self._group_s

    def head(self) -> TrackedRequest | None:
        """The next request, left in place; None if nobody waits."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if entry[4] == entry[5].ticket:
                return entry[5]
            heappop(heap)
        return None

    def newest(self) -> TrackedRequest | None:
        """The one that arrived last of those that never ran, left in place; None if all have."""
        while self._fresh:
            ticket, tracked = self._fresh[-1]
            if ticket == tracked.ticket:
                return tracked
            self._fresh.pop()
        return None

    def left(self) -> None:
        """One request has lost its ticket. Its entry is dropped when it surfaces, or in bulk."""
        self._length -= 1
        if len(self._heap) > 2 * self._length + 64:
            self._heap = [entry for entry in self._heap if entry[4] == entry[5].ticket]
            heapify(self._heap)
        if len(self._fresh) > 2 * self._length + 64:
            self._fresh = [(ticket, tracked) for ticket, tracked in self._fresh if ticket == tracked.ticket]
