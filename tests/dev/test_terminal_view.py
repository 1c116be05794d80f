"""What the demo shows: a line now and then without a terminal, and every slot in its picture."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from dev.load import LoadResult
from dev.terminal_view import LINE_EVERY_S, Moment, View, drawn, line

ENGINE: dict[str, Any] = {
    "slots": 8,
    "slots_busy": 7,
    "slots_online": 3,
    "slots_offline": 4,
    "slots_draining": 1,
    "slots_free": 0,
    "contended": 40,
    "reserved_due": 4,
    "reserved_taken": 3,
    "limit_binding": "yield",
}


def moment(phase: str = "mixed", elapsed_s: float = 5.0) -> Moment:
    load = LoadResult(sent=9, ttft_ms=[100.0, 200.0], e2e_ms=[300.0], errors=["gone"])
    waiting = {"online": 2, "offline": 30}
    return Moment(
        phase=phase, elapsed_s=elapsed_s, seconds=10.0, engine=ENGINE, waiting=waiting, offline_done=12, load=load
    )


def shown(width: int = 120) -> Console:
    return Console(file=io.StringIO(), width=width)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_line_holds_the_phase_the_slots_the_queues_and_the_latencies() -> None:
    found = line(moment())
    for part in ("mixed", "5/10 s", "slots 7/8", "online 3, offline 4", "waiting 2 online, 30 offline", "done 12"):
        assert part in found


def test_without_a_latency_there_is_a_dash() -> None:
    empty = Moment(
        phase="mixed", elapsed_s=1.0, seconds=9.0, engine=ENGINE, waiting={"online": 0, "offline": 0}, offline_done=0,
        load=LoadResult(),
    )  # fmt: skip
    assert "TTFT p50/p99 -/-" in line(empty)


def test_the_picture_has_a_cell_for_each_slot() -> None:
    console = shown()
    console.print(drawn(moment()))
    found = text_of(console)
    strip = next(each for each in found.splitlines() if each.startswith("slots"))
    assert [strip.count(cell) for cell in "■▒·"] == [3 + 4, 1, 0]
    assert "9 sent, 1 failed" in found
    assert "3 of 4 reserved dispatches taken" in found


def test_without_a_terminal_a_phase_begins_with_a_line_and_then_has_one_now_and_then() -> None:
    console = shown(200)
    with View(console) as view:
        for elapsed_s in (0.0, 1.0, LINE_EVERY_S - 0.1, LINE_EVERY_S, LINE_EVERY_S + 1):
            view.show(moment("mixed", elapsed_s))
        view.show(moment("overload", 0.1))
    starts = [each.split()[0] for each in text_of(console).splitlines()]
    assert starts == ["mixed", "mixed", "overload"]


def test_an_answer_is_shown_as_it_comes_in_one_line() -> None:
    file = io.StringIO()
    with View(Console(file=file, width=80)).words() as write:
        for part in ("The ", "capital ", "[b]is"):
            write(part)
            assert file.getvalue().endswith(part)
    assert file.getvalue() == "The capital [b]is"
