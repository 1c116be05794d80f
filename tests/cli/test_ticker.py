"""How far a command is, on a terminal and in a log."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest

from sidecar.cli.ticker import Ticker, Ticking


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.usefixtures("now")
def test_the_line_has_a_rate_and_the_time_that_is_left() -> None:
    ticker = Ticker("sent", 100_000, Terminal())
    ticker.tell(0)
    assert ticker.text(50_000, 5.0) == "sent [############............] 50,000 of 100,000 (50%), 10,000/s, 5 s left"
    assert ticker.text(100_000, 5.0).endswith("(100%), 20,000/s")
    assert ticker.text(0, 0.0).endswith("(0%)")
    assert Ticker("checked").text(7, 70.0) == "checked 7, 0.1/s"


@pytest.mark.usefixtures("now")
def test_what_was_done_before_is_no_part_of_the_rate() -> None:
    ticker = Ticker("gathered", 100, Terminal())
    ticker.tell(60)
    assert ticker.text(80, 1.0).endswith("80 of 100 (80%), 20/s, 1 s left")


def test_a_terminal_sees_one_line_that_is_written_over(now: list[float]) -> None:
    stream = Terminal()
    ticker = Ticker("sent", 10, stream)
    for done in range(5):
        ticker.tell(done)
        now[0] += 0.1
    ticker.end()
    assert stream.getvalue().count("\r") == 1
    assert stream.getvalue().endswith("\n")


def test_a_log_gets_a_line_now_and_then(now: list[float]) -> None:
    stream = io.StringIO()
    ticker = Ticker("sent", 1000, stream)
    for done in range(250):
        ticker.tell(done)
        now[0] += 0.1
    ticker.end()
    assert len(stream.getvalue().splitlines()) == 2
    assert "\r" not in stream.getvalue()


@pytest.mark.usefixtures("now")
def test_a_quick_command_says_nothing() -> None:
    stream = Terminal()
    ticker = Ticker("sent", 10, stream)
    ticker.tell(10)
    ticker.end()
    assert stream.getvalue() == ""


def test_the_reading_of_a_file_is_told_as_long_as_somebody_listens(now: list[float]) -> None:
    class File:
        name = "items.jsonl"

        def lines(self) -> Iterator[tuple[int, bytes]]:
            for number in range(1, 4):
                now[0] += 1
                yield number, b"{}"

    stream = Terminal()
    file = Ticking(File(), Ticker("checked", None, stream))
    assert (file.name, len([*file.lines()])) == ("items.jsonl", 3)
    assert "checked 3, " in stream.getvalue()
    file.ticker = None
    before = stream.getvalue()
    assert len([*file.lines()]) == 3
    assert stream.getvalue() == before
