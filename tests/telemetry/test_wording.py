"""Durations and foreign names are readable, whatever they hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.telemetry.wording import NAME_MAX, counted, duration, printable, verb


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *((0, "under 1 s"), (0.4, "under 1 s"), (0.5, "1 s"), (40, "40 s"), (59.4, "59 s"), (59.6, "1 min")),
        *((61, "1 min 1 s"), (725, "12 min 5 s"), (3555, "59 min 15 s"), (3599, "1 h")),
        *((38_580, "10 h 43 min"), (86_399, "1 d"), (277_200, "3 d 5 h"), (8_640_000, "100 d")),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@given(st.text())
def test_a_name_is_one_printable_line_that_any_terminal_takes(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert len(shown) <= NAME_MAX + 1
    shown.encode()


def test_a_usual_name_stays_as_it_is() -> None:
    assert printable("nightly-Übersicht 7") == "nightly-Übersicht 7"
    assert printable("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"


def test_one_thing_is_no_plural() -> None:
    told = [f"{counted(number, 'line')} {verb(number)} at fault" for number in (0, 1, 2)]
    assert told == ["0 lines are at fault", "1 line is at fault", "2 lines are at fault"]
