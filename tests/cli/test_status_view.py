"""`sidecar status --watch` on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.text import Text

from dev.page_scenes import scene
from sidecar.cli import status_view
from sidecar.cli.operate import StatusError
from sidecar.cli.status_view import CURVE, sparkline, view, watch


def drawn(document: dict[str, Any], width: int = 110, height: int = 60) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    with console.capture() as capture:
        console.print(view(document, width, height))
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("name", ["idle", "busy", "overload", "engine_down", "lane_stopped"])
def test_each_scene_begins_with_its_sentence_and_is_no_wider_than_the_terminal(name: str) -> None:
    for width in (80, 110, 200):
        lines = drawn(scene(name), width)
        assert max(map(len, lines)) <= width
    assert scene(name)["verdict"]["text"] in lines[1]


def test_a_busy_sidecar_shows_slots_jobs_tenants_and_decisions() -> None:
    text, (engine,) = "\n".join(drawn(scene("busy"))), scene("busy")["engines"].values()
    assert text.count("■") == engine["slots_busy"] > 0
    assert text.count("·") == engine["slots"] - engine["slots_busy"]
    for each in ("first token p95", "weekly-eval", "by weight", "a reserved dispatch was due", "$14.40", "08:31:0"):
        assert each in text or each.startswith("08:")  # a clock time is that of the reader's own zone


def test_a_banner_says_why_and_what_to_do() -> None:
    text = "\n".join(drawn(scene("engine_down")))
    assert "│ why" in text
    assert "connection refused" in text
    assert "│ to do   Look at Triton and its log." in text


def test_the_decisions_fill_what_is_left_of_the_screen_and_no_more() -> None:
    for height in (45, 50, 60):
        assert len(drawn(scene("busy"), height=height)) <= height
    assert len(drawn(scene("busy"), height=60)) > len(drawn(scene("busy"), height=45))


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "[bold red]x[/]", "\u202eevil"])
def test_a_name_has_no_effect_on_the_terminal(name: str) -> None:
    document = scene("busy")
    [engine] = document["engines"].values()
    for each in (*engine["rows"], *document["tenants"], *document["jobs"]):
        each |= {"tenant": name, "job": name}
    document["decisions"][-1]["text"] = f"stopped 1 row of `{name}`"
    document["verdict"]["text"] = name
    lines = drawn(document)
    assert all(line.isprintable() for line in lines)
    if name.startswith("["):
        assert any(name in line for line in lines)


def test_a_sidecar_that_says_less_is_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_view, "status_text", lambda document: f"it is {document['state']}")
    document = scene("busy")
    del document["history"], document["verdict"]
    assert drawn(document) == ["it is serving"]


def test_a_curve_keeps_the_largest_value_of_each_part_and_what_was_not_measured_is_a_gap() -> None:
    assert sparkline([None, 0.0, 1.0, 2.0], 4) == (" ▁▅█", 2.0)
    curve, top = sparkline([0.0] * 179 + [9.0], CURVE)
    assert (len(curve), curve[-1], top) == (CURVE, "█", 9.0)
    assert sparkline([], 5) == ("     ", 0.0)
    assert sparkline([0.0, 0.0], 3) == (" ▁▁", 0.0)


def test_a_restart_of_the_sidecar_is_waited_for_and_what_was_seen_stays() -> None:
    seen: Iterator[str | StatusError] = iter(["first", StatusError("no sidecar answers"), "second"])

    def screen(_width: int, _height: int) -> RenderableType:
        if (found := next(seen, None)) is None:
            raise KeyboardInterrupt
        if isinstance(found, StatusError):
            raise found
        return Text(found)

    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        watch(screen, Console(file=out, force_terminal=True, width=80, height=24), 0.0)
    silent = out.getvalue().partition("no sidecar answers")[2]
    assert "first" in silent
    assert "asked again every second" in silent
    assert "second" in silent.partition("first")[2]
