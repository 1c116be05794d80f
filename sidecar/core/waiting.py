"""Items that wait, by deadline first, then by when their first token is due: what one tenant has waiting.

It is due by the objective that a request states for itself, or else the model's: then the order is that of arrival.

Equal prefixes may run together, so that the KV cache still holds what they share: an item then stands right behind the
oldest that waits with its prefix (as BatchLLM and BlendServe order whole batches), if that came at most `window`
arrivals before it. So an item is overtaken by fewer than `window` others, however popular their prefix is.

A heap with lazy deletion: push and leave are O(log n), looking at the head is O(1) on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from sidecar.core.item import Item

_Entry = tuple[float, float, int, int, int, Item]


class Waiting:
    """A heap of items. An entry is live while the item still has the ticket that it was pushed with."""

    __slots__ = ("_heap", "_leaders", "_length", "_ttft_objective_s", "_window")

    def __init__(self, window: int = 0, ttft_objective_s: float = 0.0) -> None:
        self._heap: list[_Entry] = []
        self._length = 0
        self._window = window  # 0 = prefixes do not matter
        self._ttft_objective_s = ttft_objective_s
        self._leaders: dict[str, tuple[float, int]] = {}  # by prefix: the place of the oldest

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        """Each item, in no particular order; O(n), for snapshots and for closing."""
        return (entry[5] for entry in self._heap if entry[4] == entry[5].ticket)

    def push(self, item: Item) -> None:
        """`item`, which has a new ticket, waits at the place that its deadline and its objective give it."""
        work = item.work
        if item.place is None:
            item.place = self._place(item)
        heappush(self._heap, (work.deadline_s, *item.place, item.sequence, item.ticket, item))
        self._length += 1

    def _place(self, item: Item) -> tuple[float, int]:
        """When the first token is due of the item that it stands behind, and its sequence; or its own."""
        work, prefix = item.work, item.work.prefix_key
        own = (work.arrived_s + (work.ttft_objective_ms / 1000 or self._ttft_objective_s), item.sequence)
        if not self._window or not prefix:
            return own
        leader = self._leaders.get(prefix)
        if leader is not None and leader <= own and item.sequence - leader[1] < self._window:
            return leader
        if len(self._leaders) >= self._window:
            oldest = item.sequence - self._window
            self._leaders = {key: each for key, each in self._leaders.items() if each[1] > oldest}
        self._leaders[prefix] = own
        return own

    def head(self) -> Item | None:
        """The next item, left in place; None if nobody waits."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if entry[4] == entry[5].ticket:
                return entry[5]
            heappop(heap)
        return None

    def left(self) -> None:
        """One item has lost its ticket. Its entry is dropped when it surfaces, or in bulk."""
        self._length -= 1
        if len(self._heap) > 2 * self._length + 64:
            self._heap = [entry for entry in self._heap if entry[4] == entry[5].ticket]
            heapify(self._heap)
