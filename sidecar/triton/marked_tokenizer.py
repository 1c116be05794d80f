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
        for each in document["added_tokens"]:
            each["special"] = each["special"] or each["content"] in markers
        self._tokenizer: Any = Tokenizer.from_str(json.dumps(document))
        self._tokenizer.encode_special_tokens = True  # their names in a text are text
        flags = {each["content"]: each for each in document["added_tokens"]}
        self._names = {marker: f"\uf8ff{secrets.token_hex(8)}\uf8ff" for marker in sorted(markers)}
        self._tokenizer.add_tokens(
            [
                AddedToken(name, lstrip=flags[marker]["lstrip"], rstrip=flags[marker]["rstrip"], normalized=False)
                for marker, name in self._names.items()
            ]
        )
        self._ids = {
            self._tokenizer.token_to_id(name): tokenizer.token_to_id(marker) for marker, name in self._names.items()
        }

    def encode(self, parts: Sequence[str]) -> tuple[int, ...]:
        """The ids of text, marker, text, …, text."""
        text = "".join(self._names[part] if at % 2 else part for at, part in enumerate(parts))
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return tuple(self._ids.get(each, each) for each in encoding.ids)
