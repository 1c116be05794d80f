"""What goes to stderr: one line per event, ours always, a library's again and again only once a minute."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from sidecar.telemetry.logs import JsonFormatter, OnceAMinute, TextFormatter, configure


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("sidecar")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def record(name: str, message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "x.py", 1, message, args, None)


def test_our_lines_show_from_info_on_and_those_of_libraries_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text", verbose=False)
    for name in ("sidecar.app", "aiokafka.client"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(level, "%s %s", name, logging.getLevelName(level))
    shown = [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()]
    assert shown == [
        "INFO sidecar.app: sidecar.app INFO",
        "WARNING sidecar.app: sidecar.app WARNING",
        "WARNING aiokafka.client: aiokafka.client WARNING",
    ]


def test_a_command_that_ends_leaves_the_libraries_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text", verbose=False, libraries=False)
    logging.getLogger("aiokafka").error("Unable connect")
    logging.getLogger("sidecar.triton.tokenizer").warning("odd")
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["odd"]


def test_to_configure_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", verbose=False)
    configure("text", verbose=True)
    logging.getLogger("sidecar.x").debug("once")
    assert capsys.readouterr().err.count("once") == 1


def test_a_library_that_repeats_itself_is_heard_once_a_minute_with_the_number_of_what_was_left_out() -> None:
    now_s = 0.0
    subject = OnceAMinute(lambda: now_s)
    shown = []
    for now_s in (0.0, 1.0, 59.0, 60.5, 61.0):
        each = record("aiokafka.conn", "no node %s", now_s)
        if subject.filter(each):
            shown.append(each.getMessage())
    assert shown == ["no node 0.0", "no node 60.5 (and 2 more of this kind)"]
    assert all(subject.filter(record("sidecar.offline.lane", "the same")) for _ in range(9))


def test_the_kinds_of_messages_that_are_remembered_are_bounded() -> None:
    subject = OnceAMinute(lambda: 0.0)
    for number in range(10_000):
        subject.filter(record("lib", f"message {number}"))
    assert len(subject._said) <= 500


def test_a_name_cannot_end_the_line_or_move_the_cursor() -> None:
    line = TextFormatter().format(record("sidecar.x", "job %s", "a\nINFO forged\x1b[2J"))
    assert line.endswith("WARNING sidecar.x: job a\\nINFO forged\\x1b[2J")


def test_json_is_one_object_per_line_with_its_fields_and_its_traceback() -> None:
    each = record("sidecar.x", "engine %s is down\n", "e0")
    each.engine = "e0"
    try:
        raise ValueError("odd")
    except ValueError:
        each.exc_info = sys.exc_info()
    line = JsonFormatter().format(each)
    assert "\n" not in line
    document = json.loads(line)
    assert {name: document[name] for name in ("level", "logger", "message", "engine")} == {
        "level": "WARNING",
        "logger": "sidecar.x",
        "message": "engine e0 is down\n",
        "engine": "e0",
    }
    assert document["time"].endswith("+00:00")
    assert "ValueError: odd" in document["error"]
    assert json.loads(JsonFormatter().format(record("lib", "%s", object())))["level"] == "WARNING"


@pytest.mark.parametrize(("terminal", "first"), [(True, "WARNING"), (False, '{"time"')])
def test_people_read_a_terminal_and_a_collector_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool, first: str
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    configure("auto", verbose=False)
    logging.getLogger("sidecar.app").warning("engine %s", "e\x1b[2J", extra={"trace_id": "4bf9"})
    shown = capsys.readouterr().err
    assert first in shown
    assert shown.count("\n") == 1
    assert "\x1b[2J" not in shown
    if terminal:
        assert shown.endswith("engine e\\x1b[2J (trace 4bf9)\n")
        assert "sidecar.app" not in shown
    else:
        assert json.loads(shown)["trace_id"] == "4bf9"
