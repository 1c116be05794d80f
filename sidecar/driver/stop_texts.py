"""Finds stop texts in an output while it grows, id by id, wherever they begin and end.

The output is decoded piece by piece: a window of the last ids is decoded with the new one, and what is longer than
before is the new piece of text. A piece that ends inside a character waits for its other bytes. That is how inference
servers stream text; it costs a few ids per token however long the output is. A decoder may still write an id otherwise
inside a whole text than at a window's edge, so a find is only a hint: `Generation` looks for it in the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Self

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoders write for the bytes of a character that is not complete
HELD_MAX = 8  # ids that wait for the rest of a character: one has four bytes at most, so after these it is none
WINDOW_MAX = 64  # ids: special tokens have no text, and a run of them must not make the window long

Decode = Callable[[Sequence[int]], str]


class StopTexts:
    """What one output has shown so far of the texts that end it."""

    def __init__(self, stops: Sequence[str], decode: Decode) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._decode = decode
        self._window: tuple[int, ...] = ()  # the last ids; those before `_shown_ids` have been read already
        self._shown_ids = 0
        self._shown = ""  # the text of those
        self._tail = ""  # the end of the text: as much as can be the beginning of a stop text

    def copy(self) -> Self:
        """Return a reader that goes on from here, whatever becomes of this one."""
        return copy(self)  # all it holds is immutable

    def push(self, token: int) -> bool:
        """Take in the next id. Return True once a stop text is complete, and none can be that began before it."""
        if not self._stops or not (piece := self._piece(token)):
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

    def _piece(self, token: int) -> str:
        """The text that this id adds; "" while that is not known yet."""
        window = self._window = (*self._window, token)
        text = self._decode(window)
        held = len(window) - self._shown_ids
        if text.endswith(INCOMPLETE) and held < HELD_MAX:
            return ""
        if len(text) <= len(self._shown) and len(window) < WINDOW_MAX:
            return ""
        piece = text[len(self._shown) :]
        self._window = window[self._shown_ids :]
        self._shown_ids, self._shown = len(self._window), self._decode(self._window)
        return piece


def first_of(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of `stops` begins in `text`; None if none is in it."""
    return min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=None)
