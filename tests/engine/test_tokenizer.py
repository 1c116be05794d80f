"""The committed tokenizer file is what its script makes, takes any text, and marks the end of each prompt."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

FOLDER = Path(__file__).parents[2] / "model_repository/tokenizer"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_the_committed_file_is_what_the_script_makes(tokenizer: Any) -> None:
    assert runpy.run_path(str(FOLDER / "make.py"))["build"]().to_str() == tokenizer.to_str()


@given(text=st.text(max_size=80).filter(lambda text: "<" not in text))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_known_words_are_one_token_and_the_prompt_ends_in_its_marker(tokenizer: Any) -> None:
    assert tokenizer.encode("<|offline|>Summarise the quiet engine.").tokens == [
        *("<|offline|>", "Summarise", "Ġthe", "Ġquiet", "Ġengine", ".", "<|end_of_prompt|>")
    ]


def test_words_inside_an_output_get_no_marker(tokenizer: Any) -> None:
    assert tokenizer.encode(" Therefore", add_special_tokens=False).tokens == ["ĠTherefore"]
