"""What a stream shows is never taken back, and joined it is the whole answer."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sidecar.driver.stop_texts import first_of
from sidecar.openai.text_stream import TextStream

LETTERS = "ab\nc"


def decode(ids: Sequence[int]) -> str:
    return "".join(LETTERS[each] for each in ids)


def shown(ids: Sequence[int], *stops: str) -> list[str]:
    stream, found = TextStream(decode, stops), []
    for each in ids:
        stream.push([each])
        found.append(stream.take())
    return found


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3))
def test_with_the_rest_it_is_the_answer_up_to_its_first_stop(ids: list[int], stops: list[str]) -> None:
    stream, text = TextStream(decode, stops), decode(ids)
    at = first_of(text, stops)
    whole = text if at is None else text[:at]
    taken = ""
    for each in ids:
        stream.push([each])
        taken += stream.take()
        assert whole.startswith(taken)
        if first_of(decode(ids)[: len(taken) + 8], stops) is not None:
            break
    assert taken + stream.rest(whole) == whole


def test_what_may_be_the_beginning_of_a_stop_waits() -> None:
    assert shown([0, 1, 0], "bc") == ["a", "", "ba"]


def test_without_stops_each_piece_is_shown_at_once() -> None:
    assert shown([0, 1, 3]) == ["a", "b", "c"]


def test_a_whole_that_does_not_begin_as_shown_adds_nothing() -> None:
    stream = TextStream(decode, ())
    stream.push([0])
    stream.take()
    assert stream.rest("ba") == ""
