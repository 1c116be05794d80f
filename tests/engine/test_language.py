"""The language of the CPU engine: what it may say, and what may follow, from the tokenizer and words.txt alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.language import END, END_OF_PROMPT, OFFLINE, SPACE, Language
from tests.engine.builders import FOLDER, LANGUAGE, TOKENIZER


def test_every_word_that_may_be_said_is_one_token_and_no_marker() -> None:
    markers = {LANGUAGE.end_id, LANGUAGE.end_of_prompt_id, LANGUAGE.offline_id}
    assert markers.isdisjoint(LANGUAGE.readable)
    assert len(markers) == 3
    assert set(LANGUAGE.readable) == {each for words in LANGUAGE.classes for each in words}
    assert all(TOKENIZER.decode([each]).strip() for each in LANGUAGE.readable)
    assert LANGUAGE.vocab_size == TOKENIZER.get_vocab_size()


def test_every_class_leads_to_classes_that_can_be_said_so_that_no_sentence_gets_stuck() -> None:
    assert len(LANGUAGE.followers) == len(LANGUAGE.classes)
    for followers in LANGUAGE.followers:
        assert followers
        assert all(0 <= each < len(LANGUAGE.classes) and LANGUAGE.classes[each] for each in followers)


def test_a_language_without_grammar_may_say_everything_and_marks_nothing() -> None:
    free = Language.free(5)
    assert free.readable == (0, 1, 2, 3, 4)
    assert free.classes == free.followers == ()
    assert {free.end_id, free.end_of_prompt_id, free.offline_id}.isdisjoint(free.readable)


def folder(directory: Path, words: str, *tokens: str) -> Path:
    vocab = {token: number for number, token in enumerate((END, END_OF_PROMPT, OFFLINE, *tokens))}
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}), encoding="utf-8")
    (directory / "words.txt").write_text(words, encoding="utf-8")
    return directory


def test_a_words_file_is_classes_with_those_that_may_follow_and_words_below(tmp_path: Path) -> None:
    words = "# a comment\nnoun > stop stop noun\nsea ship\nstop > noun\n.\nprompt >\nWhich\n"
    found = Language.load(folder(tmp_path, words, f"{SPACE}sea", f"{SPACE}ship", "."))
    assert found.classes == ((3, 4), (5,))
    assert found.followers == ((1, 1, 0), (0,))  # a class that comes twice is likelier
    assert found.readable == (3, 4, 5)


@pytest.mark.parametrize("missing", [f"{SPACE}ship", "."])
def test_a_word_without_an_id_is_named_with_what_makes_the_file_anew(tmp_path: Path, missing: str) -> None:
    words = "noun > stop\nsea ship\nstop > noun\n.\n"
    tokens = [each for each in (f"{SPACE}sea", f"{SPACE}ship", ".") if each != missing]
    with pytest.raises(ValueError, match=r"the tokenizer has no token .*; make it anew with model_repository"):
        Language.load(folder(tmp_path, words, *tokens))


@pytest.mark.parametrize("marker", [END, END_OF_PROMPT, OFFLINE])
def test_a_tokenizer_without_a_marker_is_refused(tmp_path: Path, marker: str) -> None:
    directory = folder(tmp_path, "noun > noun\nsea\n", f"{SPACE}sea")
    document = json.loads((directory / "tokenizer.json").read_text())
    del document["model"]["vocab"][marker]
    (directory / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="has no token"):
        Language.load(directory)


def test_the_committed_words_are_those_of_the_committed_tokenizer() -> None:
    assert Language.load(FOLDER) == LANGUAGE
