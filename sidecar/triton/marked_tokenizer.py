"""A copy of a tokenizer that knows the markers of a chat template by other names alone.

In it the model's own names of its markers are text. The template's markers get names that no text holds, and come out
as the model's ids. So the text around them is split, normalised and encoded as in the tokenizer itself.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer


class MarkedTokenizer:
    """Made when the first content with a marker comes: loading a large vocabulary again takes a second."""

    def __init__(self, tokenizer: Tokenizer, markers: Collection[str]) -> None:
        document: Any = json.loads(tokenizer.to_str())
        added = document["added_tokens"]
        for each in added:
            each["special"] = each["special"] or each["content"] in markers
        _rename_pieces(document["model"], markers)
        self._tokenizer: Any = Tokenizer.from_str(json.dumps(document))
        self._tokenizer.encode_special_tokens = True  # their names in a text are text
        flags = {each["content"]: each for each in added}
        self._names = {marker: _private() for marker in sorted(markers)}
        self._tokenizer.add_tokens(
            [
                AddedToken(name, lstrip=flags[marker]["lstrip"], rstrip=flags[marker]["rstrip"], normalized=False)
                for marker, name in self._names.items()
            ]
        )
        # An added token whose name is no piece any more has another id in the copy.
        self._ids = {self._tokenizer.token_to_id(each["content"]): each["id"] for each in added} | {
            self._tokenizer.token_to_id(name): tokenizer.token_to_id(marker) for marker, name in self._names.items()
        }

    def encode(self, parts: Sequence[str]) -> tuple[int, ...]:
        """The ids of text, marker, text, …, text."""
        text = "".join(self._names[part] if at % 2 else part for at, part in enumerate(parts))
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return tuple(self._ids.get(each, each) for each in encoding.ids)


def _rename_pieces(model: Any, markers: Collection[str]) -> None:
    """No piece of the model itself is a marker: a Unigram model holds `</s>`, and would find it in a text."""
    pieces = model["vocab"]
    if isinstance(pieces, list):  # of a Unigram model, with their scores; what is unknown is an index
        model["vocab"] = [[_private() if piece in markers else piece, score] for piece, score in pieces]
        return
    # The model looks for what is unknown by its name; that text is unknown is the truth of it.
    found = [each for each in markers if each in pieces and each != model.get("unk_token")]
    for each in found:
        pieces[_private()] = pieces.pop(each)
    if "merges" in model:
        model["merges"] = [each for each in model["merges"] if not _names_any(each, found)]


def _names_any(merge: str | Sequence[str], pieces: Collection[str]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in pieces or right in pieces or left + right in pieces


def _private() -> str:
    return f"\uf8ff{secrets.token_hex(8)}\uf8ff"
