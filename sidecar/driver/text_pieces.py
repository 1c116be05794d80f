"""The text of an output while it grows, piece by piece.

A window of the last ids is decoded with the new one, and what is longer than before is the new piece of text. A piece
that ends inside a character waits for its other bytes. That is how inference servers stream text; it costs a few ids
per token however long the output is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Self

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoders write for the bytes of a character that is not complete
HELD_MAX = 8  # ids that wait for the rest of a character: one has four bytes at most, so after these it is none
WINDOW_MAX = 64  # ids: special tokens have no text, and a run of them must not make the window long

Decode = Callable[[Sequence[int]], str]


class TextPieces:
    """Decodes one output id by id. Joined, the pieces are the text, but for what a decoder writes otherwise at the
    edge of a window than inside a text."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode
        self._window: tuple[int, ...] = ()  # the last ids; those before `_shown_ids` have been read already
        self._shown_ids = 0
        self._shown = ""  # the text of those

    def copy(self) -> Self:
        """Return a reader that goes on from here, whatever becomes of this one."""
        return copy(self)  # all it holds is immutable

    def push(self, token: int) -> str:
        """Take in the next id. Return the text that it adds; "" while that is not known yet."""
        window = self._window = (*self._window, token)
        text = self.decode(window)
        held = len(window) - self._shown_ids
        if text.endswith(INCOMPLETE) and held < HELD_MAX:
            return ""
        if len(text) <= len(self._shown) and len(window) < WINDOW_MAX:
            return ""
        piece = text[len(self._shown) :]
        self._window = window[self._shown_ids :]
        self._shown_ids, self._shown = len(self._window), self.decode(self._window)
        return piece
