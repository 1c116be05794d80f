"""What of an answer may be shown while it grows: whole characters, and nothing that may belong to a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.driver.stop_texts import begun, first_of
from sidecar.driver.text_pieces import Decode, TextPieces


class TextStream:
    """The text of one answer. What `take` has given is never taken back."""

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self._pieces = TextPieces(decode)
        self._stops = stops
        self._shown = ""
        self._waiting = ""

    def push(self, ids: Sequence[int]) -> None:
        """The engine has given these ids."""
        self._waiting += "".join(map(self._pieces.push, ids))

    def take(self) -> str:
        """Return what may be shown now and was not yet."""
        at = first_of(self._waiting, self._stops)
        end = len(self._waiting) - begun(self._waiting, self._stops) if at is None else at
        piece, self._waiting = self._waiting[:end], self._waiting[end:]
        self._shown += piece
        return piece

    def rest(self, whole: str) -> str:
        """Return what is missing of the whole answer."""
        return whole[len(self._shown) :] if whole.startswith(self._shown) else ""
