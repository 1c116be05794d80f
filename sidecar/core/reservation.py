"""The reservation: every Nth contended dispatch of an engine goes to offline, whatever the online queue.

Credit is an integer, because 1/(N-1) added N-1 times in floats stays below 1 for many N. A contended online dispatch
earns 1; at N-1 a reserved dispatch is due: the next contended dispatch is offline's, and it pays N-1. Hence, while
offline is backlogged, every window of k*N contended dispatches holds at least k-1 offline ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

WINDOWS = range(2, 21)  # the k of the windows of k*N contended dispatches that are watched


class Reservation:
    """The credit of one engine, its reserved dispatches, and the record that proves the bound."""

    __slots__ = (
        "_credit_max",
        "_earned",
        "credit",
        "due_since_s",
        "earns",
        "postponing",
        "record",
        "reserved_due",
        "reserved_lapsed",
        "reserved_postponed",
        "reserved_taken",
    )

    def __init__(self, every: int, saved_max: int) -> None:
        self._earned = every - 1
        self._credit_max = saved_max * self._earned
        self.credit = 0
        self.earns = 1  # credit per contended online dispatch; more where a deadline is near
        self.reserved_due = 0
        self.reserved_taken = 0
        self.reserved_lapsed = 0
        self.reserved_postponed = 0
        self.postponing = False
        self.due_since_s = 0.0
        self.record = ContendedRecord(every)

    @property
    def due(self) -> bool:
        """True if the next contended dispatch is offline's."""
        return self.credit >= self._earned

    def online_dispatched(self, now_s: float) -> None:
        """A contended dispatch went to online: offline earned a part of a reserved dispatch."""
        if self.credit < self._credit_max:
            saved = self.credit // self._earned
            self.credit = min(self.credit + self.earns, self._credit_max)
            self.reserved_due += self.credit // self._earned - saved
            if not saved and self.due:
                self.due_since_s = now_s
        self.record.add(offline=False)

    def take_reserved(self) -> None:
        """A contended dispatch went to offline, which pays for it."""
        self.credit -= self._earned
        self.reserved_taken += 1
        self.postponing = False
        self.record.add(offline=True)

    def postpone(self, now_s: float, postpone_max_s: float) -> bool:
        """Put off the reserved dispatch that is due; False once it has been put off for `postpone_max_s`, and must be
        taken."""
        if now_s - self.due_since_s >= postpone_max_s:
            return False
        self.reserved_postponed += not self.postponing
        self.postponing = True
        return True

    def offline_emptied(self) -> None:
        """Nothing offline waits any more: reserved dispatches still due lapse, and the next backlog starts from
        zero."""
        self.reserved_lapsed += self.credit // self._earned
        self.credit = 0
        self.postponing = False
        self.record.restart()


class ContendedRecord:
    """What the contended dispatches of one engine were, measured over every window of k*N of them, k = 2 … 20.

    A window never spans a time when offline was empty: the bound holds for a backlogged lane. A window of k*N that ends
    at dispatch n falls short if its (k-1)th latest offline dispatch is not inside, so the next one that could is known
    as soon as offline has a dispatch: O(1) for the others.
    """

    __slots__ = (
        *("_every", "_held", "_latest", "_number", "_recent", "_short_at", "_since_offline", "contended", "offline"),
        *("starvation_gap", "window_violations", "worst_window"),
    )

    def __init__(self, every: int) -> None:
        self._every = every
        self._number = 0  # dispatches since offline's queue filled
        self._since_offline = 0
        self._recent: deque[bool] = deque(maxlen=2 * every)
        self._held = 0  # offline's among the recent ones
        self._latest: deque[int] = deque(maxlen=len(WINDOWS))  # offline's, by number; 0 stands for none
        self._short_at = 0  # the next dispatch that may complete a window which falls short
        self.contended = 0
        self.offline = 0
        self.starvation_gap = 0  # most contended dispatches in a row that were not offline's
        self.window_violations = 0  # windows of k*N with fewer than k-1 offline dispatches
        self.worst_window: int | None = None  # least offline dispatches in a window of 2*N; None before the first one
        self.restart()

    @property
    def worst_window_share(self) -> float | None:
        """Least offline share over all windows of 2*N contended dispatches; the bound is 1/2N."""
        return None if self.worst_window is None else self.worst_window / (2 * self._every)

    def add(self, *, offline: bool) -> None:
        """One more contended dispatch."""
        self.contended += 1
        self._number += 1
        self._since_offline += 1
        if offline:
            self.offline += 1
            self._since_offline = 0
            self._latest.append(self._number)
            self._short_at = min(self._falls_short_at())
        elif self._since_offline > self.starvation_gap:
            self.starvation_gap = self._since_offline
        if self._number >= self._short_at:
            self.window_violations += sum(each <= self._number for each in self._falls_short_at())
        self._slide(offline)

    def restart(self) -> None:
        """The windows begin anew; what was measured stays."""
        self._number = self._since_offline = self._held = 0
        self._recent.clear()
        self._latest.extend([0] * len(WINDOWS))
        self._short_at = 2 * self._every

    def _falls_short_at(self) -> Iterator[int]:
        """For each k the dispatch at which a window of k*N falls short if offline gets none until then."""
        return (number + k * self._every for k, number in zip(WINDOWS, reversed(self._latest), strict=True))

    def _slide(self, offline: bool) -> None:
        recent = self._recent
        if self._number > 2 * self._every:
            self._held -= recent[0]
        recent.append(offline)
        self._held += offline
        if self._number >= 2 * self._every and (self.worst_window is None or self._held < self.worst_window):
            self.worst_window = self._held
