"""Boards: where panels stand, and what may be chosen."""

from __future__ import annotations

from dev.boards.board import board, placed
from dev.boards.panel import Panel, stat


def tile(width: int, height: int = 4) -> Panel:
    return stat("t", "q", shows="s", do="d", size=(width, height))


def test_panels_fill_a_row_from_the_left_and_go_on_below() -> None:
    panels = placed({"A": [tile(12, 8), tile(12, 4), tile(6)], "B": [tile(24)]})
    assert [(each["gridPos"]["x"], each["gridPos"]["y"]) for each in panels] == [
        *((0, 0), (0, 1), (12, 1), (0, 9)),
        *((0, 13), (0, 14)),
    ]
    assert [each["id"] for each in panels] == [1, 2, 3, 4, 5, 6]


def test_the_common_variables_are_on_every_board_and_the_others_where_asked() -> None:
    names = [each["name"] for each in board("x", "X", "", {}, variables=("lane",))["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "lane"]


def test_an_objective_is_one_and_lanes_may_be_both() -> None:
    lane, objective = board("x", "X", "", {}, variables=("lane", "objective"))["templating"]["list"][-2:]
    assert (lane["multi"], objective["multi"]) == (True, False)
    assert objective["current"]["value"] == "ttft"


def test_boards_link_to_each_other_with_time_and_variables_kept() -> None:
    [link] = board("x", "X", "", {})["links"]
    assert (link["tags"], link["keepTime"], link["includeVars"]) == (["sidecar"], True, True)
