"""Who is next inside one lane of one model: deadline first, then arrival.

A heap with lazy deletion: push, pop and discard are O(log n), looking at the head is O(1) on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count

from sidecar.core.item import Item

_Entry = tuple[float, float, int, int, Item]


class LaneQueue:
    """The waiting items of one lane of one model. An item that comes back keeps its age, hence its place."""

    __slots__ = ("_heap", "_length", "_tickets")

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._length = 0
        self._tickets = count(1)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        """Each waiting item, in no particular order; O(n), for snapshots and for closing."""
        return (entry[4] for entry in self._heap if entry[3] == entry[4].ticket)

    def push(self, item: Item) -> None:
        """`item` waits, at the place that its deadline and its arrival give it."""
        item.ticket = ticket = next(self._tickets)
        work = item.work
        heappush(self._heap, (work.deadline_s, work.arrived_s, item.sequence, ticket, item))
        self._length += 1

    def head(self) -> Item | None:
        """The next item, left in place; None if nobody waits."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if entry[3] == entry[4].ticket:
                return entry[4]
            heappop(heap)
        return None

    def discard(self, item: Item) -> None:
        """`item`, which waits here, waits no more. Its entry is dropped when it surfaces, or in bulk."""
        item.ticket = 0
        self._length -= 1
        if len(self._heap) > 2 * self._length + 64:
            self._heap = [entry for entry in self._heap if entry[3] == entry[4].ticket]
            heapify(self._heap)
