"""Which finished items go into the next transaction, after a topic has refused a record. Pure.

A broker refuses whole batches, so one record too many would hold up its partition for ever. The records that were
refused together are halved until one of them is refused alone; each part is a transaction of its own, and what passes
is committed. The one that remains is written in another shape (a dead letter, a shorter one, its headers alone). If not
even the last is taken the item is held: its neighbours go on, and it is tried again now and then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum


class WrittenForm(IntEnum):
    """How an item is written, from what it should be to what takes the least room."""

    WHOLE = 0  # its result, or its dead letter byte for byte
    CUT = 1  # a dead letter with a part of the value
    BARE = 2  # a dead letter of our headers alone


@dataclass(slots=True)
class Refusals:
    """What is known of one partition's refused records. Offsets."""

    suspects: tuple[int, ...] = ()  # refused together; one of them at least is to blame
    held: dict[int, float] = field(default_factory=dict)  # not taken in any shape: when to try again
    shapes: dict[int, WrittenForm] = field(default_factory=dict)  # of dead letters that have to be shorter
    items_max: int | None = None  # in one transaction, after a larger one was refused and each of its parts taken
    _refused: int = 0  # items in the smallest transaction that was refused since then

    def choose(self, sizes: Mapping[int, int], bytes_max: int, now_s: float) -> list[int]:
        """The offsets of the next transaction, ascending, of the finished items with these sizes in bytes."""
        if self.suspects:  # after a new opening each of them waits for its record
            ready = [offset for offset in self.suspects if offset in sizes]
            return ready[: max(1, len(self.suspects) // 2)]
        due = [offset for offset in sizes if now_s >= self.held.get(offset, now_s)]
        if again := [offset for offset in due if offset in self.held]:
            free = [offset for offset in due if offset not in self.held]
            return _within(sorted(free), sizes, bytes_max, self.items_max) or again[:1]  # a held one goes alone
        return _within(sorted(due), sizes, bytes_max, self.items_max)

    def waits(self, offsets: Collection[int], now_s: float) -> bool:
        """True if another transaction should follow at once, for these finished items."""
        return any(now_s >= self.held.get(offset, now_s) for offset in offsets)

    def passed(self, offsets: Iterable[int]) -> None:
        """These are committed."""
        gone = set(offsets)
        found_none = bool(self.suspects)
        self.suspects = tuple(offset for offset in self.suspects if offset not in gone)
        if found_none and not self.suspects:
            self.items_max = max(1, self._refused // 2)  # every part was taken: together they were too long
        for offset in gone:
            self.forget(offset)

    def refused(self, batch: Collection[int], refused: Collection[int]) -> int | None:
        """The one to blame if it was alone; else None, and it is looked for among these."""
        if len(batch) == 1:
            self.suspects = ()
            return next(iter(batch))
        self._refused = len(refused)
        self.suspects = tuple(sorted(refused))
        return None

    def shorter(self, offset: int, again_s: float) -> WrittenForm | None:
        """The next shape of this dead letter; None if there is none: it is held until `again_s`."""
        shape = self.shapes.get(offset, WrittenForm.WHOLE)
        if shape is WrittenForm.BARE:
            self.held[offset] = again_s
            return None
        self.shapes[offset] = WrittenForm(shape + 1)
        return self.shapes[offset]

    def forget(self, offset: int) -> None:
        """The item is committed, or somebody else's."""
        self.suspects = tuple(each for each in self.suspects if each != offset)
        self.held.pop(offset, None)
        self.shapes.pop(offset, None)


def _within(offsets: Iterable[int], sizes: Mapping[int, int], bytes_max: int, items_max: int | None) -> list[int]:
    """The first of these offsets that fit into one transaction; one at least."""
    chosen: list[int] = []
    left = bytes_max
    for offset in offsets:
        left -= sizes[offset]
        if chosen and (left < 0 or len(chosen) == items_max):
            break
        chosen.append(offset)
    return chosen
