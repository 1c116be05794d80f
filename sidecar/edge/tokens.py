"""Text to token ids and back, with the very tokenizer file that Triton's preprocessing model loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from sidecar.core.errors import SettingsError

END_OF_PROMPT = "<|end_of_prompt|>"
END = "</s>"


class Tokens:
    """One loaded tokenizer. Its methods release the GIL, so that they may run in a thread beside the event loop."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.end_id = _id(tokenizer, END)
        self.end_of_prompt_id = _id(tokenizer, END_OF_PROMPT)

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """The tokenizer of a `tokenizer.json`. Raises SettingsError if it is none, or lacks our two markers."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except SettingsError:
            raise
        except Exception as error:  # `tokenizers` raises nothing more precise
            raise SettingsError(f"{path} is no tokenizer: {error}") from None

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """The ids of a whole prompt; the tokenizer's own template appends the end-of-prompt marker."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def encode_words(self, text: str) -> tuple[int, ...]:
        """The ids of a piece of text as it stands inside an output: a stop word, for example."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of output ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise SettingsError(f"the tokenizer has no token {token!r}; use the file that the engine was built with")
    return found
