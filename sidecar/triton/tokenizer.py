"""Text to token ids and back, with the very tokenizer file that Triton's preprocessing model loads.

Texts come in any length. What cannot fit the model is refused by its bytes alone; what is long goes to another process
(`encoder.py`); the rest takes a few milliseconds without the GIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders

from sidecar.core.errors import SettingsError, SidecarError
from sidecar.triton.chat_template import ChatTemplate, ChatTemplateError, Messages, Rendered
from sidecar.triton.encoder import Encoder, whole
from sidecar.triton.marked_tokenizer import MarkedTokenizer
from sidecar.triton.model_files import CONFIG, GENERATION, ModelFiles, read_model_files, tokenizer_file

# Here 0.1 to 0.2 s of tokenizing in a thread, and some 2 ms of the GIL for the list of ids (measured).
LONG_BYTES = 256 << 10
CHAT_BYTES_MAX = 64 << 20  # where it is not known how much text a token stands for
NONE = ModelFiles(end_ids=(), special={}, template=None)
RARE = "\U0002a6a5"  # a letter that a vocabulary knows by its bytes, or not at all
NORMALIZED_TO = 4  # bytes of a text for each that its normalizer leaves


class TextTooLongError(SidecarError):
    """The text has more tokens than the model takes."""


class Tokens:
    """One loaded tokenizer. Its methods release the GIL, so that they may run in a thread beside the event loop.

    `close` ends the process for long texts, if there is one.
    """

    vocabulary: int | None = None  # one more than the largest id; None = unknown
    token_bytes_max: int | None = None  # of text, that one token stands for at most; None = unknown
    end_id: int | None = None  # the engine's `end_id`
    further_end_ids: tuple[int, ...] = ()  # they end an answer too; the engine takes them as stop words
    chat_fault: str | None = "the model has no chat template"  # None = chats are served
    _encoder: Encoder | None = None
    _chat: ChatTemplate | None = None

    def __init__(
        self,
        tokenizer: Tokenizer,
        encoder: Encoder | None = None,
        end_ids: Sequence[int] = (),
        files: ModelFiles = NONE,
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self.end_id = end_ids[0] if end_ids else None
        self.further_end_ids = tuple(end_ids[1:])
        self._end_ids = frozenset(end_ids)
        added = {each.content: each.special or number in self._end_ids
                 for number, each in tokenizer.get_added_tokens_decoder().items()}  # fmt: skip
        if files.template is not None:
            try:
                self._chat, self.chat_fault = ChatTemplate(files.template, files.special, added), None
            except ChatTemplateError as error:
                self.chat_fault = str(error)
        # Of the markers of the chat, but for what stands for unknown letters.
        self._control_ids: frozenset[int | None] = frozenset()
        if self._chat is not None:
            controls = {tokenizer.token_to_id(each) for each in self._chat.markers}
            self._control_ids = frozenset(controls.difference(self.encode_words(RARE)))
        self._marked_tokenizer: MarkedTokenizer | None = None
        vocabulary = tokenizer.get_vocab()
        self.vocabulary = max(vocabulary.values()) + 1
        self.token_bytes_max = _token_bytes_max(tokenizer, vocabulary)

    @classmethod
    def load(cls, path: Path, end_ids: Sequence[int] = ()) -> Tokens:
        """The tokenizer of a `tokenizer.json`, or of the directory of one, with the files beside it.

        `end_ids` win over what the files say. Raises SettingsError if it is none, or nothing says what ends an answer.
        """
        file = tokenizer_file(path)
        files = read_model_files(file.parent)
        if not file.is_file():
            raise SettingsError(f"{path} holds no tokenizer.json{_instead(file.parent)}")
        try:
            tokenizer = whole(Tokenizer.from_file(str(file)))
        except Exception as error:  # `tokenizers` raises nothing more precise
            raise SettingsError(f"{file} is no tokenizer: {error}") from None
        return cls(tokenizer, Encoder(file), _end_ids(tokenizer, file, files, end_ids), files)

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

    def chat_ids(self, messages: Messages, tokens_max: int) -> tuple[int, ...]:
        """The ids of a chat by the model's template; a special token in a content is text.

        Raises ChatTemplateError, and TextTooLongError as `prompt_ids`. Blocks as that does.
        """
        if self._chat is None:
            raise ChatTemplateError(self.chat_fault or "")
        bytes_max = CHAT_BYTES_MAX if self.token_bytes_max is None else tokens_max * self.token_bytes_max
        size = sum(len(content.encode()) for _, content in messages)
        if size > bytes_max:
            raise TextTooLongError(f"contents of {size} bytes exceed the {bytes_max} that {tokens_max} tokens can hold")
        rendered = self._chat.render(messages, bytes_max)
        if not (text := rendered.text):
            raise ChatTemplateError("the chat template writes nothing")
        if not rendered.plain:
            return self._marked(rendered)
        if len(text) <= LONG_BYTES or self._encoder is None:
            ids = self.encode_words(text)  # the template adds the first token itself, if there is one
        else:
            ids = tuple(self._encoder.encode(text, special=False))
        # A normalizer makes markers of letters that are none, such as wide ones.
        written = [self._tokenizer.token_to_id(marker) for marker in rendered.markers]
        return ids if self._controls(ids) == self._controls(written) else self._marked(rendered)

    def _marked(self, rendered: Rendered) -> tuple[int, ...]:
        """The ids of a chat in which only the template's own markers are markers. Raises ChatTemplateError."""
        assert self._chat is not None
        if self._marked_tokenizer is None:
            self._marked_tokenizer = MarkedTokenizer(self._tokenizer, self._chat.markers)
        return self._marked_tokenizer.encode(rendered.parts)

    def _controls(self, ids: Sequence[int | None]) -> list[int | None]:
        """Those that mean something to the model and are no text."""
        return [each for each in ids if each in self._control_ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of output ids, special tokens and those that end an answer left out."""
        shown = [each for each in ids if each not in self._end_ids]
        return str(self._tokenizer.decode(shown, skip_special_tokens=True))


def _instead(directory: Path) -> str:
    """Return what to do with the older files that are there in its place."""
    older = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json")
    found = next((name for name in older if (directory / name).is_file()), None)
    if found is None:
        return ""
    return f", only {found}: AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers writes one from it"


def _end_ids(tokenizer: Tokenizer, file: Path, files: ModelFiles, stated: Sequence[int]) -> tuple[int, ...]:
    """Return what ends an answer: the setting, else generation_config.json, else tokenizer_config.json's eos_token."""
    found = tuple(stated) or files.end_ids
    if not found and (name := files.special.get("eos_token")) is not None:
        if (number := tokenizer.token_to_id(name)) is None:
            raise SettingsError(f"{file} has no token {name!r}, the eos_token of {CONFIG}")
        found = (number,)
    if not found:
        where = f"{GENERATION} (eos_token_id) nor {CONFIG} (eos_token) beside {file}"
        raise SettingsError(f"tokenizer: neither {where} says what ends an answer; add one, or state end_ids")
    if unknown := [each for each in found if tokenizer.id_to_token(each) is None]:
        raise SettingsError(f"tokenizer: the end id {unknown[0]} is not in the vocabulary of {file}")
    return found


def _token_bytes_max(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> int | None:
    """The bytes of text that one token stands for at most; None = unknown.

    In a byte-level vocabulary each character of a token is one byte of text. A normalizer shortens the text first: to a
    third, where it makes plain letters of wide ones.
    """
    model = getattr(tokenizer, "model", None)
    if not isinstance(tokenizer.decoder, decoders.ByteLevel) and not getattr(model, "byte_fallback", False):
        return None  # a run of unknown letters, of any length, may be one token
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        found = max(map(len, vocabulary))
    else:
        found = max(len(token.encode()) for token in vocabulary)
    return found if tokenizer.normalizer is None else found * NORMALIZED_TO
