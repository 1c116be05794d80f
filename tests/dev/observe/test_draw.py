"""A board is drawn panel by panel, as its JSON says."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from dev.boards.board import board
from dev.boards.panel import Panel, bars, heat, high_is_bad, lines, stat, states, table
from dev.boards.write import BOARDS
from dev.observe.draw import NOTE, drawn
from dev.observe.queries import Answer, Exemplar, Series

SAID = ("What it shows.", "What to do.")


def series(*values: float, **labels: str) -> Series:
    return Series(labels=labels, points=tuple((float(at_s), value) for at_s, value in enumerate(values)))


def texts(panel: Panel, *answers: list[Series]) -> list[str]:
    """What is written on a board of this one panel, its head left out."""
    picture = drawn(board("x", "X", "", {"Row": [panel]}), {2: Answer(series=list(answers), exemplars=[])}, 0.0, 10.0)
    return [each.text or "" for each in ElementTree.fromstring(picture) if each.tag.endswith("text")][5:]


def test_a_picture_says_who_drew_it() -> None:
    assert NOTE in drawn(board("x", "X", "", {"Row": []}), {}, 0.0, 1.0)


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_without_any_data_is_drawn_and_says_so(name: str) -> None:
    found = BOARDS[name]()
    empty = {
        each["id"]: Answer(series=[[] for _ in each["targets"]], exemplars=[])
        for each in found["panels"]
        if "targets" in each
    }
    picture = drawn(found, empty, 0.0, 60.0)
    ElementTree.fromstring(picture)
    titled = [each for each in found["panels"] if each["type"] != "row"]
    assert picture.count("no data") == len(titled)


def test_a_tile_has_its_value_in_words_where_there_are_some() -> None:
    shown = stat("Engine", "q", words={"1": ("Serving", "green")}, shows=SAID[0], do=SAID[1])
    assert texts(shown, [series(1.0)]) == ["Engine", "Serving"]
    named = stat("Held by", "q", legend="{{limit}}", names={"kv": "KV cache"}, shows=SAID[0], do=SAID[1])
    assert texts(named, [series(1.0, limit="kv")]) == ["Held by", "KV cache"]


def test_a_tile_is_coloured_by_its_thresholds() -> None:
    shown = stat("t", "q", steps=high_is_bad(1, 5), shows=SAID[0], do=SAID[1])
    fills = {}
    for value in (0.0, 1.0, 5.0):
        picture = drawn(
            board("x", "X", "", {"Row": [shown]}), {2: Answer(series=[[series(value)]], exemplars=[])}, 0.0, 1.0
        )
        fills[value] = re.findall(r'fill="(#\w+)" rx="4" fill-opacity="0.92"', picture)
    assert fills == {0.0: ["#56A64B"], 1.0: ["#FF9830"], 5.0: ["#E02F44"]}


def test_stacked_series_stand_on_each_other_and_a_limit_does_not() -> None:
    panel = lines(
        "t", {"{{lane}}": "q", "capacity": "r"}, stacked=True, dashed=("capacity",), shows=SAID[0], do=SAID[1]
    )
    written = texts(panel, [series(2.0, 2.0, lane="online"), series(3.0, 3.0, lane="offline")], [series(8.0, 8.0)])
    assert {"online", "offline", "capacity"} <= set(written)
    assert "10" in written  # the axis reaches the capacity, and not 2 + 3 + 8


def test_a_series_that_was_away_leaves_a_gap_and_nan_is_no_value() -> None:
    panel = lines("t", {"a": "q"}, shows=SAID[0], do=SAID[1])
    gap = Series(labels={}, points=((0.0, 1.0), (1.0, 1.0), (5.0, 1.0), (6.0, math.nan)))
    dot = Exemplar(at_s=1.0, value=0.5, trace_id="t")
    picture = drawn(board("x", "X", "", {"Row": [panel]}), {2: Answer(series=[[gap]], exemplars=[dot])}, 0.0, 10.0)
    assert picture.count('<polygon points="') == 3  # two parts, and the exemplar


def test_states_bars_heat_and_tables_say_their_names() -> None:
    said = {"shows": SAID[0], "do": SAID[1]}
    assert "slots" in texts(states("t", "q", "{{limit}}", **said), [series(1.0, 1.0, limit="slots")])  # type: ignore[arg-type]
    assert "1.5k" in texts(bars("t", "q", "{{tenant}}", **said), [series(1500.0, tenant="a")])  # type: ignore[arg-type]
    hot = texts(heat("t", "q", **said), [series(1.0, le="0.5"), series(3.0, le="+Inf")])  # type: ignore[arg-type]
    assert "500 ms" in hot
    rows = table("t", {"done": ("q", "short"), "due": ("r", "s")}, keys=("job",), **said)  # type: ignore[arg-type]
    assert texts(rows, [series(7.0, job="nightly")], []) == ["t", "job", "done", "due", "nightly", "7", "–"]
