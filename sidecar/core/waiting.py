"""Items that wait, by deadline first, then by arrival: what one tenant has waiting, or all that can expire.

A heap with lazy deletion: push and leave are O(log n), looking at the head is O(1) on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from sidecar.core.item import Item

_Entry = tuple[float, float, int, int, Item]


class Waiting:
    """A heap of items. An entry is live while the item still has the ticket that it was pushed with."""

    __slots__ = ("_heap", "_length")

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        """Each item, in no particular order; O(n), for snapshots and for closing."""
        return (entry[4] for entry in self._heap if entry[3] == entry[4].ticket)

    def push(self, item: Item) -> None:
        """`item`, which has a new ticket, waits at the place that its deadline and its arrival give it."""
        work = item.work
        heappush(self._heap, (work.deadline_s, work.arrived_s, item.sequence, item.ticket, item))
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

    def left(self) -> None:
        """One item has lost its ticket. Its entry is dropped when it surfaces, or in bulk."""
        self._length -= 1
        if len(self._heap) > 2 * self._length + 64:
            self._heap = [entry for entry in self._heap if entry[3] == entry[4].ticket]
            heapify(self._heap)
