"""A dead letter says why, for metrics, for people and for programs, and never what the item held."""

from __future__ import annotations

import pytest

from sidecar.offline.dead_letters import TELL_EVERY_S, DeadItemError, DeadLetterLog, DeadReason


def test_dead_letters_are_told_once_a_reason_and_then_counted(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    log = DeadLetterLog(lambda: now_s)

    def told() -> list[str]:
        messages = [each.getMessage() for each in caplog.records]
        caplog.clear()
        return messages

    for number in range(5000):
        log.tell(f"t/0/{number}", DeadItemError(DeadReason.INVALID, "seed must be an integer"))
    log.tell("t/0/5000", DeadItemError(DeadReason.TOO_LONG, "too many tokens"))
    assert told() == [
        "dead letter (invalid): t/0/0: seed must be an integer; further ones of this reason are counted",
        "dead letter (too_long): t/0/5000: too many tokens; further ones of this reason are counted",
    ]
    log.look()
    assert told() == []
    now_s = TELL_EVERY_S
    log.look()
    assert told() == ["4999 more dead letters (invalid) in 60 s; the last: t/0/4999: seed must be an integer"]
    log.tell("t/0/5001", DeadItemError(DeadReason.INVALID, "seed must be an integer"))
    log.look()
    assert told() == []
    log.close()
    assert told() == ["1 more dead letters (invalid) in 0 s; the last: t/0/5001: seed must be an integer"]
    log.close()
    assert told() == []
