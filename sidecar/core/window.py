"""The collection window: a slot that came free waits a moment for online work before backfill may take it.

One timer per slot, from the moment it came free, instead of one gate that would open for all at once.
"""

from __future__ import annotations

from bisect import bisect_right
from math import inf


class FreeSlots:
    """The free slots of one engine. A slot is ripe, which is open to backfill, once its window has ended."""

    __slots__ = ("_windows", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = slots  # all of them. To be read only
        self._windows = [-inf] * slots  # when each window ends, oldest slot first; never sooner than the one before it

    def add(self, slots: int, window_end_s: float) -> None:
        """`slots` more are free; backfill may take them from `window_end_s` on."""
        self.slots += slots
        if self._windows:
            window_end_s = max(window_end_s, self._windows[-1])
        self._windows += [window_end_s] * slots

    def ripe(self, now_s: float) -> int:
        """How many of the free slots backfill may take now."""
        return bisect_right(self._windows, now_s)

    def take(self, slots: int) -> None:
        """`slots` fewer are free: the freshest go first, because they would keep backfill waiting longest."""
        self.slots -= slots
        del self._windows[self.slots :]

    def take_ripe(self, slots: int) -> None:
        """`slots` fewer are free, all of them ripe."""
        self.slots -= slots
        del self._windows[:slots]

    def next_ripe_s(self, now_s: float) -> float:
        """When the next window ends; inf if none is open."""
        ripe = self.ripe(now_s)
        return self._windows[ripe] if ripe < self.slots else inf
