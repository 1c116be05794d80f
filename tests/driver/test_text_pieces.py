"""The pieces of a growing text, joined, are the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sidecar.driver.text_pieces import TextPieces

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\N{REPLACEMENT CHARACTER}"), max_size=80)


@cache
def bytes_as_ids() -> Tokenizer:
    """One id for each byte, as a byte-level vocabulary has it for what it does not know."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={each: at for at, each in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pieces_of(ids: Sequence[int]) -> list[str]:
    reader = TextPieces(lambda each: str(bytes_as_ids().decode(list(each), skip_special_tokens=False)))
    return [reader.push(each) for each in ids]


@given(TEXTS)
def test_joined_the_pieces_are_the_text(text: str) -> None:
    assert "".join(pieces_of(bytes_as_ids().encode(text).ids)) == text


def test_a_character_waits_for_its_last_byte() -> None:
    assert pieces_of(bytes_as_ids().encode("é𝄞").ids) == ["", "é", "", "", "", "𝄞"]


@pytest.mark.parametrize("at", range(6))
def test_a_copy_goes_on_alone(at: int) -> None:
    ids = bytes_as_ids().encode("é𝄞").ids
    reader = TextPieces(lambda each: str(bytes_as_ids().decode(list(each))))
    begun = [reader.push(each) for each in ids[:at]]
    copy = reader.copy()
    reader.push(bytes_as_ids().encode("x").ids[0])
    assert "".join([*begun, *map(copy.push, ids[at:])]) == "é𝄞"
