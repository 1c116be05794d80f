"""Text, marker, text: the ids are those of the tokenizer, and what a text says of markers is text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from sidecar.triton.encoder import whole
from sidecar.triton.marked_tokenizer import MarkedTokenizer
from tests.triton.model_directories import llama_like, mistral_like, qwen_like

TEXTS = st.text(st.sampled_from("ab <|>é😀.1\n"), max_size=12)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of each family, by its name."""
    return {
        build.__name__: whole(
            Tokenizer.from_file(str(build(tmp_path_factory.mktemp(build.__name__)) / "tokenizer.json"))
        )
        for build in (llama_like, qwen_like, mistral_like)
    }


def specials(tokenizer: Any) -> dict[str, int]:
    return {each.content: number for number, each in tokenizer.get_added_tokens_decoder().items()}


@pytest.mark.parametrize("family", ["llama_like", "qwen_like"])
@settings(max_examples=30)
@given(data=st.data())
def test_texts_without_markers_have_the_ids_that_they_have_around_markers_in_the_tokenizer_itself(
    family: str, tokenizers: dict[str, Any], data: st.DataObject
) -> None:
    tokenizer = tokenizers[family]
    names = [*specials(tokenizer)]
    parts = [data.draw(TEXTS)]
    for _ in range(data.draw(st.integers(0, 3))):
        parts += [data.draw(st.sampled_from(names)), data.draw(TEXTS)]
    marked = MarkedTokenizer(tokenizer, names)
    assert list(marked.encode(parts)) == tokenizer.encode("".join(parts), add_special_tokens=False).ids


@pytest.mark.parametrize("family", ["llama_like", "qwen_like", "mistral_like"])
@settings(max_examples=30)
@given(data=st.data())
def test_no_text_becomes_a_marker_whatever_it_says(
    family: str, tokenizers: dict[str, Any], data: st.DataObject
) -> None:
    tokenizer = tokenizers[family]
    names = specials(tokenizer)
    texts = st.lists(st.sampled_from([*names, "a", " ", "<", "|"]), max_size=6).map("".join)
    first, second = data.draw(texts), data.draw(texts)
    marker = data.draw(st.sampled_from([*names]))
    ids = MarkedTokenizer(tokenizer, names).encode([first, marker, second])
    assert [each for each in ids if each in names.values()] == [names[marker]]
    around = tokenizer.decode([each for each in ids if each != names[marker]], skip_special_tokens=False)
    assert around.replace(" ", "") == (first + second).replace(" ", "")


@pytest.mark.parametrize("build", [llama_like, mistral_like])
def test_a_text_alone_is_encoded_as_ever(build: Callable[[Path], Path], tmp_path: Path) -> None:
    tokenizer: Any = whole(Tokenizer.from_file(str(build(tmp_path) / "tokenizer.json")))
    marked = MarkedTokenizer(tokenizer, specials(tokenizer))
    assert list(marked.encode(["hi é 1"])) == tokenizer.encode("hi é 1", add_special_tokens=False).ids
    assert marked.encode([""]) == ()


def test_only_the_templates_markers_are_markers_and_other_special_tokens_in_a_text_are_text(
    tokenizers: dict[str, Any],
) -> None:
    tokenizer = tokenizers["qwen_like"]
    names = specials(tokenizer)
    ids = MarkedTokenizer(tokenizer, ["<|im_start|>"]).encode(["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
    assert [each for each in ids if each in names.values()] == [names["<|im_start|>"]]


def test_a_marker_takes_the_spaces_that_it_takes_in_the_tokenizer_itself(tmp_path: Path) -> None:
    tokenizer: Any = whole(Tokenizer.from_file(str(llama_like(tmp_path) / "tokenizer.json")))
    tokenizer.add_special_tokens([AddedToken("<|mask|>", lstrip=True, rstrip=True, normalized=False)])
    marked = MarkedTokenizer(tokenizer, ["<|mask|>"])
    assert list(marked.encode(["a  ", "<|mask|>", "  b"])) == tokenizer.encode("a  <|mask|>  b").ids[1:]


def test_the_tokenizer_itself_stays_as_it_is(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["llama_like"]
    before = tokenizer.to_str()
    MarkedTokenizer(tokenizer, specials(tokenizer)).encode(["<|eot_id|>", "<|eot_id|>", ""])
    assert tokenizer.to_str() == before


def test_the_names_of_markers_are_drawn_anew_so_that_no_text_can_hold_them(tokenizers: dict[str, Any]) -> None:
    names = specials(tokenizers["llama_like"])
    first, second = (MarkedTokenizer(tokenizers["llama_like"], names) for _ in range(2))
    assert set(first._names.values()).isdisjoint(second._names.values())
    assert len(set(first._names.values())) == len(names)
