"""The checked-in boards are the code's, and keep the rules of Grafana's own linter."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from dev.boards.write import BOARDS, DIRECTORY, main, written

EACH = pytest.mark.parametrize("name", BOARDS)


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DIRECTORY / f"{name}.json").read_text())
    return found


def panels(name: str) -> list[dict[str, Any]]:
    return [each for each in read(name)["panels"] if each["type"] != "row"]


def queries(name: str) -> list[str]:
    return [target["expr"] for panel in panels(name) for target in panel["targets"]]


def test_the_files_are_the_present_ones() -> None:
    assert {path.name: path.read_text() for path in DIRECTORY.glob("*.json")} == {
        path.name: text for path, text in written().items()
    }, "run: scripts/boards"
    assert main(["--check"]) == 0


@EACH
def test_every_panel_has_title_unit_source_and_says_what_to_do(name: str) -> None:
    for panel in panels(name):
        assert panel["title"], panel
        assert "**What to do:** " in panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["targets"], panel["title"]


@EACH
def test_no_two_panels_of_a_board_overlap_or_leave_it(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in read(name)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not taken & cells, panel["title"]
        taken |= cells


@EACH
def test_every_variable_is_used_and_every_one_that_is_used_is_there(name: str) -> None:
    built_in = {"__rate_interval", "__range", "__interval", "__url_time_range", "__all_variables"}
    text = json.dumps(read(name)["panels"])
    used = set(re.findall(r"\$\{?(\w+)", text)) - built_in
    assert used == {each["name"] for each in read(name)["templating"]["list"]}


@EACH
def test_rates_are_taken_over_the_scrape_interval_or_over_a_stated_time(name: str) -> None:
    for query in queries(name):
        for over in re.findall(r"\[([^\]]+)\]", query):
            assert over in ("$__rate_interval", "$__range", "5m", "1h", "1d"), query


@EACH
def test_a_board_cannot_be_edited_by_hand_and_has_a_fixed_address(name: str) -> None:
    found = read(name)
    assert (found["uid"], found["editable"], found["tags"]) == (f"sidecar-{name}", False, ["sidecar"])


@EACH
def test_links_of_panels_lead_to_boards_that_exist(name: str) -> None:
    for panel in panels(name):
        for link in panel["fieldConfig"]["defaults"].get("links", ()):
            assert re.match(r"/d/sidecar-(\w+)\?", link["url"])[1] in BOARDS  # type: ignore[index]


def test_the_check_finds_a_file_that_was_changed_by_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dev.boards.write.DIRECTORY", tmp_path)
    assert main([]) == 0
    (tmp_path / "jobs.json").write_text("{}")
    assert main(["--check"]) == 1
    assert capsys.readouterr().out == "jobs.json is not the code's: run scripts/boards\n"
