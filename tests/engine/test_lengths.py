"""How many tokens the CPU engine says: drawn from prompt and seed, and the same for a call that is resumed."""

from __future__ import annotations

from statistics import quantiles

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.lengths import output_length
from tests.engine.builders import LANGUAGE, ids_of


@pytest.mark.parametrize(("prefix", "median", "p99"), [("<|offline|>", 120, 890), ("", 16, 48)])
def test_lengths_follow_the_kind_of_prompt(prefix: str, median: int, p99: int) -> None:
    lengths = [output_length(ids_of(f"{prefix}Describe the river {n}"), LANGUAGE, 0) for n in range(4000)]
    cuts = quantiles(lengths, n=100)
    assert cuts[49] == pytest.approx(median, rel=0.06)
    assert cuts[98] == pytest.approx(p99, rel=0.2)


def test_a_length_counts_from_the_last_marker_so_a_resumed_call_ends_at_the_same_token() -> None:
    prompt = ids_of("<|offline|>Describe the river")
    length = output_length(prompt, LANGUAGE, 0)
    said = LANGUAGE.readable[:10]
    assert output_length(prompt + said, LANGUAGE, 0) == length - 10
    assert output_length(prompt + LANGUAGE.readable[:200] * 10, LANGUAGE, 0) == 1
    assert {output_length(prompt, LANGUAGE, seed) for seed in range(5)} != {length}


IDS = st.lists(st.sampled_from(LANGUAGE.readable), min_size=1, max_size=30).map(tuple)


@settings(max_examples=50)
@given(prompt=IDS, seed=st.integers(0, 2**31 - 1))
def test_a_length_is_drawn_once_from_the_prompt_and_the_seed(prompt: tuple[int, ...], seed: int) -> None:
    ids = (*prompt, LANGUAGE.end_of_prompt_id)
    length = output_length(ids, LANGUAGE, seed)
    assert length == output_length(ids, LANGUAGE, seed) >= 1


@settings(max_examples=50)
@given(prompt=IDS, said=IDS, seed=st.integers(0, 1000))
def test_what_was_said_already_counts_and_the_end_stays_where_it_was(
    prompt: tuple[int, ...], said: tuple[int, ...], seed: int
) -> None:
    ids = (LANGUAGE.offline_id, *prompt, LANGUAGE.end_of_prompt_id)
    whole = output_length(ids, LANGUAGE, seed)
    assert output_length((*ids, *said), LANGUAGE, seed) == max(1, whole - len(said))


def test_the_last_marker_counts_so_a_chat_that_goes_on_is_a_new_prompt() -> None:
    first = ids_of("How far is the sea")
    second = (*first, *LANGUAGE.readable[:3], *ids_of("And the mountain"))
    assert {output_length(second, LANGUAGE, seed) for seed in range(20)} != {
        output_length(first, LANGUAGE, seed) for seed in range(20)
    }


def test_without_a_marker_all_ids_are_the_prompt() -> None:
    ids = LANGUAGE.readable[:5]
    lengths = {output_length(ids[:count], LANGUAGE, 0) for count in range(1, 6)}
    assert len(lengths) > 1  # each is drawn anew, and nothing counts as said
