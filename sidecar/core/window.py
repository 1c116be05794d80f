"""The collection window: a slot that came free waits a moment for online work before backfill may take it.

One timer per slot, from the moment it came free, instead of one gate that would open for all at once.
"""

from __future__ import annotations

from collections import deque
from math import inf


class FreeSlots:
    """The free slots of one engine. `fresh` ones are still inside their window, `ripe` ones are open to backfill."""

    __slots__ = ("_fresh", "_ripe", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = slots  # all of them. To be read only
        self._ripe = slots
        self._fresh: deque[float] = deque()  # when each window ends, oldest slot first

    def add(self, slots: int, window_end_s: float) -> None:
        """`slots` more are free; backfill may take them from `window_end_s` on."""
        self.slots += slots
        for _ in range(slots):
            self._fresh.append(window_end_s)

    def ripe(self, now_s: float) -> int:
        """How many of the free slots backfill may take now."""
        fresh = self._fresh
        while fresh and fresh[0] <= now_s:
            fresh.popleft()
            self._ripe += 1
        return self._ripe

    def take(self, slots: int) -> None:
        """`slots` fewer are free: the freshest go first, because they would keep backfill waiting longest."""
        self.slots -= slots
        for _ in range(slots):
            if self._fresh:
                self._fresh.pop()
            else:
                self._ripe -= 1

    def take_ripe(self, slots: int) -> None:
        """`slots` fewer are free, all of them ripe."""
        self.slots -= slots
        self._ripe -= slots

    def next_ripe_s(self) -> float:
        """When the next window ends; inf if none is open."""
        return self._fresh[0] if self._fresh else inf
