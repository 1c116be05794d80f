"""Stop texts in a growing output: inside ids, across ids, across halves of characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from sidecar.driver.stop_texts import StopTexts, first_of
from sidecar.driver.text_pieces import HELD_MAX, INCOMPLETE, WINDOW_MAX

OURS = Path(__file__).resolve().parents[2] / "model_repository/tokenizer/tokenizer.json"
TEXTS = st.text(st.sampled_from("teachr jons.é𝄞中'\n"), max_size=60)


def word(texts: Sequence[str]) -> Callable[[Sequence[int]], str]:
    """A decoder whose ids are the places in `texts`."""
    return lambda ids: "".join(texts[each] for each in ids)


def found_at(texts: Sequence[str], *stops: str) -> int | None:
    """After how many of these pieces a stop was found."""
    reader = StopTexts(stops, word(texts))
    return next((number for number in range(len(texts)) if reader.push(number)), None)


def test_a_stop_is_found_inside_one_id() -> None:
    assert found_at(["the ", "teacher", " joins"], "each") == 1


def test_a_stop_is_found_across_ids_with_its_last_character() -> None:
    assert found_at(["the ", "tea", "cher", " jo", "ins"], "teacher joins") == 4


def test_what_is_not_in_the_text_is_not_found() -> None:
    assert found_at(["the ", "teacher"], "Teacher", "eacher ") is None


def test_of_two_stops_the_one_that_begins_first_decides_also_if_it_is_complete_later() -> None:
    assert found_at(["xa", "b", "c", "d"], "abcd", "bc") == 3
    assert found_at(["xa", "b", "c", "e"], "abcd", "bc") == 3  # with the e it is known that the longer one is none


def test_a_stop_that_needs_no_id_is_never_found() -> None:
    assert found_at(["a", "b"], "") is None


def test_the_first_of_the_stops_is_where_the_text_is_cut() -> None:
    assert first_of("the teacher", ("her", "each", "zz", "")) == 5
    assert first_of("the teacher", ()) is None


def test_a_copy_goes_on_alone() -> None:
    texts = ["tea", "cher", "s"]
    reader = StopTexts(("teacher",), word(texts))
    reader.push(0)
    other = reader.copy()
    assert other.push(1)
    assert not reader.push(2)


def test_what_was_no_stop_after_all_is_not_found_again() -> None:
    reader = StopTexts(("ab",), word(["a", "b", "c", "a", "b"]))
    assert [reader.push(each) for each in (0, 1)] == [False, True]
    reader.forget()
    assert [reader.push(each) for each in (2, 3, 4)] == [False, False, True]


def test_each_id_is_decoded_with_a_few_others_however_long_the_output_is() -> None:
    asked: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        asked.append(len(ids))
        return "".join("" if each % 3 else "a" for each in ids)

    reader = StopTexts(("b",), decode)
    for number in range(2000):
        reader.push(number)
    for _ in range(500):
        reader.push(1)  # no text at all
    assert max(asked) <= WINDOW_MAX
    assert len(asked) <= 2 * 2500


def test_a_character_whose_bytes_are_spread_over_ids_is_found_with_the_last_of_them() -> None:
    reader = StopTexts(("né",), lambda ids: bytes(ids).decode(errors="replace"))
    assert [reader.push(each) for each in "né".encode()] == [False, False, True]


def test_bytes_that_never_become_a_character_are_not_held_for_ever() -> None:
    asked: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        asked.append(len(ids))
        return bytes(ids).decode(errors="replace")

    reader = StopTexts(("end",), decode)
    assert not any(reader.push(0xC3) for _ in range(1000))
    assert [reader.push(each) for each in b"end"] == [False, False, True]
    assert max(asked) <= 2 * HELD_MAX


@cache
def byte_level() -> Tokenizer:
    """A byte-level BPE whose merges run across characters and words, as a real vocabulary's do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for left, right in (
        ("t", "e"),
        ("te", "a"),
        ("Ġ", "j"),
        ("Ã", "©"),
        ("r", "Ġ"),
        ("c", "h"),
        ("Ċ", "Ġ"),
        ("©", "t"),
    ):
        vocab.setdefault(left + right, len(vocab))
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@cache
def sentence_pieces() -> Tokenizer:
    """Words that carry their leading space, which decoding drops at the beginning of a text; bytes for the rest."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"teachrjons.'", "▁tea", "cher", "▁j", "oins"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@cache
def ours() -> Tokenizer:
    return Tokenizer.from_file(str(OURS))


@pytest.mark.parametrize("make", [ours, byte_level, sentence_pieces])
@given(data=st.data(), stops=st.lists(TEXTS.filter(bool).map(lambda text: text[:6]), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_a_stop_is_found_exactly_when_the_whole_text_has_it(
    make: Callable[[], Tokenizer], data: st.DataObject, stops: list[str]
) -> None:
    tokenizer = make()
    ids = data.draw(
        st.one_of(
            TEXTS.map(lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)),
            st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=40),
        )
    )

    def decode(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=True))

    reader = StopTexts(stops, decode)
    found = next((number for number, token in enumerate(ids) if reader.push(token)), None)
    wholes = [decode(part) for part in accumulate(([each] for each in ids), initial=[])]
    if INCOMPLETE in wholes[-1]:
        return  # bytes that are no text may read otherwise in a window, so a find is only a hint
    if found is not None:
        at = first_of(wholes[found + 1], stops)
        assert at is not None
        assert at == first_of(wholes[-1], stops)  # whatever comes later, the text is cut there
    # What is complete is found with the next character at the latest, unless a longer stop may still be complete.
    first = next((number for number, text in enumerate(wholes) if first_of(text, stops) is not None), None)
    assert (found is None) or (first is not None and found + 1 >= first)
    longest = max(map(len, stops))
    if first is not None and len(wholes[-1]) - len(wholes[first]) > longest + HELD_MAX:
        assert found is not None
