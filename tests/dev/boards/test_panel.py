"""Panels as Grafana reads them."""

from __future__ import annotations

from typing import Any

from dev.boards.panel import bars, heat, high_is_bad, lines, low_is_bad, stat, states, table

SAID: dict[str, Any] = {"shows": "What it shows.", "do": "What to do."}


def test_every_panel_says_what_it_shows_and_what_to_do() -> None:
    panels = (
        stat("t", "q", **SAID),
        lines("t", {"a": "q"}, **SAID),
        states("t", "q", "{{a}}", **SAID),
        bars("t", "q", "{{a}}", **SAID),
        heat("t", "q", **SAID),
        table("t", {"a": ("q", "s")}, keys=("job",), **SAID),
    )
    assert {panel["description"] for panel in panels} == {"What it shows.\n\n**What to do:** What to do."}


def test_a_tile_that_shows_names_says_them_in_words() -> None:
    panel = stat("t", "q", legend="{{limit}}", names={"kv": "KV cache"}, **SAID)
    assert panel["options"]["textMode"] == "name"
    [override] = panel["fieldConfig"]["overrides"]
    assert override["properties"] == [{"id": "displayName", "value": "KV cache"}]


def test_a_value_with_a_word_has_its_colour() -> None:
    panel = stat("t", "q", words={"0": ("down", "red")}, **SAID)
    nan, mapping = panel["fieldConfig"]["defaults"]["mappings"]
    assert nan["options"]["match"] == "nan"
    assert mapping["options"]["0"] == {"text": "down", "color": "red", "index": 0}


def test_a_limit_is_dashed_and_stands_outside_the_stack() -> None:
    panel = lines("t", {"a": "q", "capacity": "r"}, stacked=True, dashed=("capacity",), **SAID)
    limits = [each for each in panel["fieldConfig"]["overrides"] if each["matcher"]["options"] == "capacity"]
    properties = {each["id"]: each["value"] for override in limits for each in override["properties"]}
    assert properties["custom.stacking"] == {"mode": "none"}
    assert properties["custom.lineStyle"]["fill"] == "dash"


def test_exemplars_are_asked_for_where_a_histogram_is() -> None:
    panel = lines("t", {"p95": "histogram_quantile(0.95, x_bucket)", "objective": "y"}, exemplars=True, **SAID)
    assert [target.get("exemplar", False) for target in panel["targets"]] == [True, False]


def test_a_table_has_one_row_for_each_key_and_names_its_columns() -> None:
    panel = table("t", {"done": ("q", "short"), "left": ("r", "short")}, keys=("job",), **SAID)
    merge, organize = panel["transformations"]
    assert merge["id"] == "merge"
    assert organize["options"]["renameByName"] == {"Value #A": "done", "Value #B": "left"}
    assert [target["format"] for target in panel["targets"]] == ["table", "table"]


def test_thresholds_begin_without_a_value_and_ascend() -> None:
    assert low_is_bad(0.9, 0.95) == ((None, "red"), (0.9, "orange"), (0.95, "green"))
    assert high_is_bad(1, 5) == ((None, "green"), (1, "orange"), (5, "red"))
