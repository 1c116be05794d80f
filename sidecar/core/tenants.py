"""Fairness between the tenants of a lane: the virtual token counter (Sheng et al., OSDI 2024).

The backlogged tenant that has been served least, in weighted tokens, is next; inside a tenant the order of `order.py`
holds. For two backlogged tenants of equal weight the service differs by at most
2 * max(INPUT_WEIGHT * longest prompt, OUTPUT_WEIGHT * tokens in flight), however many items either sends.
A tenant pays for its prompt once and for the tokens it got; what our slicing and preempting recomputes is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from itertools import chain

from sidecar.core.item import Item
from sidecar.core.order import LaneQueue

INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0  # an output token costs about twice a prompt token (the paper's weights)
TENANTS_KEPT = 1000  # beyond it the counters of idle tenants that no longer matter are forgotten


class FairQueue:
    """The waiting items of one lane of one model, fair between tenants. Changes are O(log n), looking is O(1)."""

    __slots__ = ("_heap", "_last", "_length", "_queues", "_weights", "served")

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._queues: dict[str, LaneQueue] = {}  # of backlogged tenants
        self._heap: list[tuple[float, str]] = []  # (served, tenant), stale where it differs from `served`
        self._length = 0
        self._last = ""  # the last tenant to leave: newcomers begin where it stands if nobody waits
        self.served: dict[str, float] = {}  # weighted tokens per tenant; raised for those who come back from idling

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        """Each waiting item, in no particular order; O(n), for snapshots."""
        return chain.from_iterable(self._queues.values())

    def push(self, item: Item) -> None:
        """`item` waits behind those of its tenant that precede it."""
        tenant = item.work.tenant
        queue = self._queues.get(tenant)
        if queue is None:
            least = self._least()
            queue = self._queues[tenant] = LaneQueue()
            # Idling saves nothing up: who comes back begins level with the least served of those who wait.
            self.served[tenant] = max(self.served.get(tenant, 0.0), self._floor if least is None else least[0])
            heappush(self._heap, (self.served[tenant], tenant))
        queue.push(item)
        self._length += 1

    def head(self) -> Item | None:
        """The next item, left in place; None if nobody waits."""
        least = self._least()
        return None if least is None else self._queues[least[1]].head()

    def discard(self, item: Item) -> None:
        """`item`, which waits here, waits no more."""
        tenant = item.work.tenant
        queue = self._queues[tenant]
        queue.discard(item)
        self._length -= 1
        if not queue:
            del self._queues[tenant]
            self._last = tenant
            if len(self.served) > TENANTS_KEPT:
                self._forget()

    def charge(self, tenant: str, prompt_tokens: int, output_tokens: int) -> None:
        """`tenant` was served so many tokens."""
        weighted = INPUT_WEIGHT * prompt_tokens + OUTPUT_WEIGHT * output_tokens
        served = self.served.get(tenant, self._floor) + weighted / self._weights.get(tenant, 1.0)
        self.served[tenant] = served
        if tenant in self._queues:
            heappush(self._heap, (served, tenant))

    @property
    def _floor(self) -> float:
        return self.served.get(self._last, 0.0)

    def _least(self) -> tuple[float, str] | None:
        """The backlogged tenant that was served least. Stale entries are low, so they surface and are dropped here."""
        heap = self._heap
        while heap:
            served, tenant = heap[0]
            if tenant in self._queues and served == self.served[tenant]:
                return heap[0]
            heappop(heap)
        return None

    def _forget(self) -> None:
        """Drop idle tenants below everyone who waits: they would be raised to that on their return anyway."""
        least = self._least()
        level = self._floor if least is None else least[0]
        self.served = {
            tenant: served
            for tenant, served in self.served.items()
            if tenant in self._queues or served > level or tenant == self._last
        }
