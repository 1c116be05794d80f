"""What the log says of a fault: the place and the kind, once a minute, and never the contents."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from sidecar.telemetry.faults import LOG_AGAIN_S, FaultLog, NoFileLeft, leaves, no_bad_encoding


def test_a_want_of_file_descriptors_is_said_once_a_minute() -> None:
    only = NoFileLeft()
    said = [
        only.filter(logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), None))
        for text in ("socket.accept() out of system resource\nsocket: x", "Task was destroyed") * 2
    ]
    assert said == [True, True, False, True]


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    """What these tests log is heard, whatever level a command of another test has left to all loggers."""
    caplog.set_level(logging.INFO, logger="t")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is; a test sets it."""
    now_s = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    return now_s


def raised(error: Exception) -> Exception:
    """The error with its traceback."""
    try:
        raise error
    except Exception as found:
        return found


def test_a_fault_is_logged_by_its_kind_and_place_and_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    FaultLog(logging.getLogger("t")).log("the page", raised(KeyError("the words of a prompt")))
    [record] = caplog.records
    assert record.getMessage().startswith("the page failed: KeyError at test_faults.py:")
    assert record.levelno == logging.ERROR
    assert "prompt" not in caplog.text
    assert "in raised" in caplog.text  # the frames


def test_the_same_place_is_logged_once_a_minute_with_the_number_of_repetitions(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    log = FaultLog(logging.getLogger("t"))
    for _ in range(3):
        log.log("a", raised(KeyError("x")))
    assert len(caplog.records) == 1
    clock[0] += LOG_AGAIN_S - 0.1
    log.log("a", raised(KeyError("x")))
    assert len(caplog.records) == 1
    clock[0] += 0.1
    log.log("b", raised(KeyError("x")))
    assert "(3 more since it was last logged)" in caplog.messages[1]
    clock[0] += LOG_AGAIN_S
    log.log("b", raised(KeyError("x")))
    assert "more since" not in caplog.messages[2]


def test_another_kind_at_the_same_place_is_another_fault(caplog: pytest.LogCaptureFixture) -> None:
    log = FaultLog(logging.getLogger("t"))
    for error in (KeyError("x"), ValueError("x"), KeyError("y")):
        log.log("a", raised(error))
    assert [message.split(" at ")[0] for message in caplog.messages] == ["a failed: KeyError", "a failed: ValueError"]


def test_each_fault_of_a_group_is_logged_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    group = raised(ExceptionGroup("g", [raised(KeyError("x")), ExceptionGroup("h", [raised(ValueError("y"))])]))
    FaultLog(logging.getLogger("t")).log("a", group)
    assert [message.split(" at ")[0] for message in caplog.messages] == ["a failed: KeyError", "a failed: ValueError"]


def test_a_fault_that_was_never_raised_has_no_place(caplog: pytest.LogCaptureFixture) -> None:
    FaultLog(logging.getLogger("t")).log("a", KeyError("x"))
    assert caplog.messages[0].startswith("a failed: KeyError at an unknown place")


def test_the_leaves_of_a_group_are_those_that_are_none_however_deep() -> None:
    first, second = KeyError(), asyncio.CancelledError()
    assert [*leaves(first)] == [first]
    assert [*leaves(BaseExceptionGroup("g", [BaseExceptionGroup("h", [first]), second]))] == [first, second]


def test_of_grpcs_lines_only_the_quoted_metadata_are_left_out() -> None:
    def passes(message: Any) -> bool:
        return no_bad_encoding(logging.LogRecord("grpc", logging.ERROR, "", 0, message, (), None))

    assert not passes("Invalid encoding on x-tenant: b'a\\xff'")
    assert passes("Unexpected: Invalid encoding on it")
    assert passes(KeyError("no text"))


def test_after_a_minute_a_want_of_file_descriptors_is_said_again(clock: list[float]) -> None:
    only = NoFileLeft()
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "socket.accept() out of system resource", (), None)
    found = []
    for passed_s in (0.0, LOG_AGAIN_S - 1, 1.0, 0.0):
        clock[0] += passed_s
        found.append(only.filter(record))
    assert found == [True, False, True, False]
