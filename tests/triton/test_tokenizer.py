"""Texts of any length become ids: in this process without the GIL, in another one, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from sidecar.core.errors import SettingsError
from sidecar.triton.encoder import Encoder
from sidecar.triton.tokenizer import LONG_BYTES, TextTooLongError, Tokens
from tests.triton.model_directories import llama_like, mistral_like, qwen_like

FILE = Path(__file__).parents[2] / "model_repository/tokenizer/tokenizer.json"
LONG = "the sea is far " * (LONG_BYTES // 15 + 1)


class Counting:
    """A tokenizer that counts what it encodes in this process."""

    def __init__(self) -> None:
        self.real = Tokenizer.from_file(str(FILE))
        self.encoded: list[int] = []

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
        self.encoded += map(len, texts)
        return self.real.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.fixture
def encoder() -> Iterator[Encoder]:
    encoder = Encoder(FILE)
    yield encoder
    encoder.close()


def test_the_ids_are_those_of_the_tokenizer() -> None:
    tokens = Tokens.load(FILE)
    real = Tokenizer.from_file(str(FILE))
    for text in ("", "how far is the sea", "é😀 x", "</s>"):
        assert list(tokens.encode_prompt(text)) == real.encode(text, add_special_tokens=True).ids
        assert list(tokens.encode_words(text)) == real.encode(text, add_special_tokens=False).ids
    assert tokens.decode(tokens.encode_words("how far is the sea")) == "how far is the sea"
    assert tokens.vocabulary == 1 + max(real.get_vocab().values())


def test_what_cannot_fit_by_its_bytes_never_reaches_the_tokenizer() -> None:
    counting: Any = Counting()
    tokens = Tokens(counting)
    assert tokens.token_bytes_max is not None
    assert tokens.token_bytes_max == max(map(len, counting.real.get_vocab()))
    bound = 10 * tokens.token_bytes_max
    with pytest.raises(TextTooLongError, match=f"a text of {bound + 1} bytes has more than 10 tokens"):
        tokens.prompt_ids("a" * (bound + 1), 10)
    with pytest.raises(TextTooLongError, match="bytes"):
        tokens.prompt_ids("é" * (bound // 2 + 1), 10)
    assert counting.encoded == []
    tokens.prompt_ids("a" * bound, 10)
    assert counting.encoded == [bound]


def test_what_is_long_is_encoded_in_another_process(encoder: Encoder) -> None:
    counting: Any = Counting()
    tokens = Tokens(counting, encoder)
    assert tokens.prompt_ids("short", 10) == tokens.encode_prompt("short")
    assert encoder.pids == set()
    counting.encoded.clear()
    ids = tokens.prompt_ids(LONG, len(LONG))
    assert counting.encoded == []
    assert len(encoder.pids) == 1
    assert os.getpid() not in encoder.pids
    assert ids == tokens.encode_prompt(LONG)
    with pytest.raises(TextTooLongError, match=f"a text of {len(ids)} tokens exceeds {len(ids) - 1}"):
        tokens.prompt_ids(LONG, len(ids) - 1)


def test_a_file_that_is_no_tokenizer_is_a_setting_to_change(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(SettingsError, match="is no tokenizer"):
        Tokens.load(file)


def test_what_ends_an_answer_comes_from_the_settings_or_the_files_beside_the_tokenizer(tmp_path: Path) -> None:
    llama, qwen = Tokens.load(llama_like(tmp_path / "a")), Tokens.load(qwen_like(tmp_path / "b") / "tokenizer.json")
    assert (llama.end_id, llama.further_end_ids) == (257, (260, 261))
    assert (qwen.end_id, qwen.further_end_ids) == (258, ())
    assert llama.decode((*llama.encode_words("yes"), 260, 261)) == "yes"
    assert Tokens.load(tmp_path / "a", (3,)).end_id == 3


def test_a_directory_that_cannot_end_an_answer_is_refused_by_name(tmp_path: Path) -> None:
    directory = llama_like(tmp_path)
    (directory / "generation_config.json").write_text('{"eos_token_id": 999999}')
    with pytest.raises(SettingsError, match="the end id 999999 is not in the vocabulary"):
        Tokens.load(directory)
    (directory / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(SettingsError, match="eos_token_id must be an id, or a list of ids"):
        Tokens.load(directory)
    (directory / "generation_config.json").unlink()
    (directory / "tokenizer_config.json").write_text("{}")
    with pytest.raises(SettingsError, match="says what ends an answer; add one, or state end_ids"):
        Tokens.load(directory)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tokenizer.json$"),
        ({"tokenizer.model": b"\n"}, r"holds no tokenizer.json, only tokenizer.model: AutoTokenizer\.from_pretrained"),
        ({"vocab.json": b"{}", "merges.txt": b""}, "holds no tokenizer.json, only vocab.json"),
        ({"tokenizer.json": b"{"}, "tokenizer.json is no tokenizer: EOF"),
        ({"tokenizer_config.json": b"{"}, "tokenizer_config.json is no JSON"),
        ({"tokenizer_config.json": b"\xff"}, "tokenizer_config.json is no JSON"),
        ({"tokenizer_config.json": b"[" * 100_000}, "tokenizer_config.json is no JSON"),
        ({"tokenizer_config.json": b"[]"}, "tokenizer_config.json must hold a JSON object"),
        ({"generation_config.json": b"["}, "generation_config.json is no JSON"),
        ({"chat_template.jinja": b"\xff"}, "cannot read .*chat_template.jinja"),
        ({"tokenizer_config.json": b'{"chat_template": 7}'}, "chat_template must be text, or a list of named texts"),
        ({"tokenizer_config.json": b'{"chat_template": [{"name": [], "template": 1}]}'}, "names no `default`"),
        (
            {"tokenizer_config.json": b'{"chat_template": [{"name": "a", "template": ""}, {"name": "b"}]}'},
            "chat_template names no `default` among several",
        ),
    ],
)
def test_a_directory_with_odd_files_is_refused_with_what_is_wrong(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    if any(name.endswith(("_config.json", ".jinja")) for name in files):
        llama_like(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        Tokens.load(tmp_path)


def test_a_file_that_cuts_prompts_for_training_cuts_none_here(tmp_path: Path) -> None:
    tokens = Tokens.load(llama_like(tmp_path))
    assert len(tokens.encode_prompt("a" * 50)) == 51


def test_a_letter_that_two_slices_share_is_whole_in_the_text(tmp_path: Path) -> None:
    for build in (llama_like, mistral_like):
        tokens = Tokens.load(build(tmp_path / build.__name__))
        ids = tokens.encode_words("é😀")
        assert tokens.decode((*ids[:3], *ids[3:])) == "é😀"
