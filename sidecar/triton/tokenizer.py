"""Text to token ids and back, with the very tokenizer file that Triton's preprocessing model loads.

Texts come in any length. What cannot fit the model is refused by its bytes alone; what is long goes to another process
(`encoder.py`); the rest takes a few milliseconds without the GIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders

from sidecar.core.errors import SettingsError, SidecarError
from sidecar.triton.encoder import Encoder

END_OF_PROMPT = "<|end_of_prompt|>"
END = "</s>"
# Here 0.1 to 0.2 s of tokenizing in a thread, and some 2 ms of the GIL for the list of ids (measured).
LONG_BYTES = 256 << 10
NORMALIZED_TO = 4  # bytes of a text for each that its normalizer leaves


class TextTooLongError(SidecarError):
    """The text has more tokens than the model takes."""


class Tokens:
    """One loaded tokenizer. Its methods release the GIL, so that they may run in a thread beside the event loop.

    `close` ends the process for long texts, if there is one.
    """

    vocabulary: int | None = None  # one more than the largest id; None = unknown
    token_bytes_max: int | None = None  # of text, that one token stands for at most; None = unknown
    _encoder: Encoder | None = None

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder | None = None) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self.end_id = _id(tokenizer, END)
        self.end_of_prompt_id = _id(tokenizer, END_OF_PROMPT)
        vocabulary = tokenizer.get_vocab()
        self.vocabulary = max(vocabulary.values()) + 1
        self.token_bytes_max = _token_bytes_max(tokenizer, vocabulary)

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """The tokenizer of a `tokenizer.json`. Raises SettingsError if it is none, or lacks our two markers."""
        try:
            return cls(Tokenizer.from_file(str(path)), Encoder(path))
        except SettingsError:
            raise
        except Exception as error:  # `tokenizers` raises nothing more precise
            raise SettingsError(f"{path} is no tokenizer: {error}") from None

    def close(self) -> None:
        """No process of ours is left; a long text starts one anew."""
        if self._encoder is not None:
            self._encoder.close()

    def prompt_ids(self, text: str, tokens_max: int) -> tuple[int, ...]:
        """The ids of a whole prompt of any length. Raises TextTooLongError if they are surely more than `tokens_max`.

        Blocks while another process encodes a long text, so call it in a thread; the GIL is free meanwhile.
        """
        size = len(text) if text.isascii() else len(text.encode())
        if self.token_bytes_max is not None and size > tokens_max * self.token_bytes_max:
            raise TextTooLongError(
                f"a text of {size} bytes has more than {tokens_max} tokens: a token has at most {self.token_bytes_max}"
            )
        if size <= LONG_BYTES or self._encoder is None:
            return self.encode_prompt(text)
        ids = self._encoder.encode(text)
        if len(ids) > tokens_max:  # and no tuple of them is made: it would take milliseconds under the GIL
            raise TextTooLongError(f"a text of {len(ids)} tokens exceeds {tokens_max}")
        return tuple(ids)

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """The ids of a whole prompt; the tokenizer's own template appends the end-of-prompt marker."""
        # Not `encode`, which holds the GIL throughout (tokenizers 0.23: 0.8 s for a MiB) and computes offsets.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=True)
        return tuple(encoding.ids)

    def encode_words(self, text: str) -> tuple[int, ...]:
        """The ids of a piece of text as it stands inside an output: a stop word, for example."""
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return tuple(encoding.ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of output ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise SettingsError(f"the tokenizer has no token {token!r}; use the file that the engine was built with")
    return int(found)


def _token_bytes_max(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> int:
    """The bytes of text that one token stands for at most.

    In a byte-level vocabulary each character of a token is one byte of text. A normalizer shortens the text first: to a
    third, where it makes plain letters of wide ones.
    """
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        found = max(map(len, vocabulary))
    else:
        found = max(len(token.encode()) for token in vocabulary)
    return found if tokenizer.normalizer is None else found * NORMALIZED_TO
