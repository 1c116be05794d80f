"""A dead letter says why, for metrics, for people and for programs, and never what the item held."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.offline.dead_letters import MESSAGE_CHARS_MAX, TELL_EVERY_S, DeadItemError, DeadLetterLog, DeadReason


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


@pytest.mark.parametrize("reason", DeadReason)
def test_every_reason_has_an_error_object_that_says_who_has_to_act(reason: DeadReason) -> None:
    told = DeadItemError(reason, "why", param="seed").openai()
    assert told.isascii()
    error = json.loads(told)
    assert (error["message"], error["param"]) == ("why", "seed")
    ours = reason in (DeadReason.FAILED, DeadReason.EMPTY_OUTPUT, DeadReason.POISON)
    assert error["type"] == ("server_error" if ours else "invalid_request_error")
    assert reason.value.replace("_", "").isalnum()  # it is a label of a metric


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (DeadReason.INVALID, "invalid_value"),
        (DeadReason.MISSING_PROMPT, "missing_required_parameter"),
        (DeadReason.UNKNOWN_MODEL, "model_not_found"),
        (DeadReason.TOO_LONG, "context_length_exceeded"),
        (DeadReason.EXPIRED, "batch_expired"),
        (DeadReason.NOT_UTF8, "not_utf8"),  # the API has no word for it
    ],
)
def test_the_code_is_the_apis_word_where_it_has_one_and_a_given_code_wins(reason: DeadReason, code: str) -> None:
    assert DeadItemError(reason, "why").code == code
    assert DeadItemError(reason, "why", code="unsupported_parameter").code == "unsupported_parameter"


@given(st.text(max_size=3000), st.none() | st.text(max_size=20))
def test_any_message_is_a_bounded_header_of_ascii_that_json_reads(message: str, param: str | None) -> None:
    told = DeadItemError(DeadReason.INVALID, message, param=param).openai()
    assert told.isascii()
    assert json.loads(told)["message"] == message[:MESSAGE_CHARS_MAX]


def test_reasons_are_counted_apart_and_each_in_its_own_time(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    log = DeadLetterLog(lambda: now_s)
    log.tell("t/0/0", DeadItemError(DeadReason.INVALID, "a"))
    now_s = TELL_EVERY_S / 2
    log.tell("t/0/1", DeadItemError(DeadReason.EXPIRED, "b"))
    log.tell("t/0/2", DeadItemError(DeadReason.INVALID, "c"))
    log.tell("t/0/3", DeadItemError(DeadReason.EXPIRED, "d"))
    caplog.clear()
    now_s = TELL_EVERY_S
    log.look()
    assert caplog.messages == ["1 more dead letters (invalid) in 60 s; the last: t/0/2: c"]
    now_s = TELL_EVERY_S * 1.5
    log.look()
    assert caplog.messages[1:] == ["1 more dead letters (expired) in 60 s; the last: t/0/3: d"]
