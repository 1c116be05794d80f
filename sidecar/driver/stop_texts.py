"""Finds stop texts in an output while it grows, id by id, wherever they begin and end.

The output is decoded piece by piece. A decoder may write an id otherwise inside a whole text than at a window's edge,
so a find is only a hint: `Generation` looks for it in the whole text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from sidecar.driver.text_pieces import Decode, TextPieces


class StopTexts:
    """What one output has shown so far of the texts that end it."""

    def __init__(self, stops: Sequence[str], decode: Decode) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._pieces = TextPieces(decode)
        self._tail = ""  # the end of the text: as much as can be the beginning of a stop text

    def copy(self) -> Self:
        """Return a reader that goes on from here, whatever becomes of this one."""
        other = type(self)(self._stops, self._pieces.decode)
        other._pieces, other._tail = self._pieces.copy(), self._tail
        return other

    def push(self, token: int) -> bool:
        """Take in the next id. Return True once a stop text is complete, and none can be that began before it."""
        if not self._stops or not (piece := self._pieces.push(token)):
            return False
        self._tail += piece
        at = first_of(self._tail, self._stops)
        if at is None:
            self._tail = self._tail[max(0, len(self._tail) - self._longest + 1) :]
            return False
        return not any(self._may_begin(begin) for begin in range(max(0, len(self._tail) - self._longest + 1), at))

    def forget(self) -> None:
        """Look only at what comes from here on: what seemed to be a stop text is none in the whole text."""
        self._tail = ""

    def _may_begin(self, at: int) -> bool:
        """True if the text ends in the beginning of a stop text, from `at` on."""
        rest = self._tail[at:]
        return any(stop[0] == rest[0] and stop.startswith(rest) for stop in self._stops)


def first_of(text: str, stops: Sequence[str]) -> int | None:
    """Return where the first of `stops` begins in `text`; None if none is in it."""
    return min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=None)


def begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `stops`."""
    longest = max((len(stop) for stop in stops), default=0)
    for held in range(min(longest - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-held:]) for stop in stops):
            return held
    return 0
