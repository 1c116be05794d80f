"""Dead letters and results as lines of OpenAI Batch files; the `openai` package's own types read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import BatchError
from openai.types.shared import ErrorObject

from sidecar.batch.outcome_lines import LinePlace, custom_id, outcome_line
from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item import Record, dead_headers, result_headers

ITEM = b'{"custom_id": "q-17", "url": "/v1/completions", "body": {"prompt": "p"}}'


def item(value: bytes | None = ITEM, *headers: tuple[str, bytes]) -> Record:
    return Record(topic="req", partition=2, offset=40, timestamp_ms=0, key=None, value=value, headers=headers)


def dead(reason: DeadReason, source: Record) -> Record:
    headers = dead_headers(source, "g", DeadItemError(reason, "seed must be positive", param="seed"), "read", 5)
    return Record(topic="dlq", partition=2, offset=1, timestamp_ms=0, key=None, value=source.value, headers=headers)


def error(reason: DeadReason, source: Record | None = None) -> dict[str, Any]:
    line = outcome_line(dead(reason, source or item()), dead=True)
    assert line is not None
    found: dict[str, Any] = json.loads(line.value)
    assert set(found) == {"id", "custom_id", "response", "error"}
    return found


def test_a_refusal_is_an_answer_with_the_error_that_the_api_would_give() -> None:
    found = error(DeadReason.INVALID)
    assert (found["id"], found["custom_id"], found["error"]) == ("batch_req_req/2/40", "q-17", None)
    assert found["response"]["status_code"] == 400
    told = ErrorObject.model_validate(found["response"]["body"]["error"], strict=True)
    assert (told.code, told.param, told.type) == ("invalid_value", "seed", "invalid_request_error")


@pytest.mark.parametrize(
    ("reason", "status"),
    [(DeadReason.UNKNOWN_MODEL, 404), (DeadReason.TOO_LARGE, 413), (DeadReason.FAILED, 500), (DeadReason.POISON, 500)],
)
def test_the_status_is_the_one_of_the_api(reason: DeadReason, status: int) -> None:
    assert error(reason)["response"]["status_code"] == status


@pytest.mark.parametrize(
    ("reason", "code"), [(DeadReason.EXPIRED, "batch_expired"), (DeadReason.CANCELLED, "batch_cancelled")]
)
def test_an_item_that_never_ran_has_no_answer(reason: DeadReason, code: str) -> None:
    found = error(reason)
    assert found["response"] is None
    assert BatchError.model_validate(found["error"]).code == code


@pytest.mark.parametrize("value", [b"not json", b"\xff\xfe", b"[1]", b'{"custom_id": 7}', b"", None, b"[" * 100_000])
def test_what_has_no_id_that_anybody_could_read_has_an_empty_one(value: bytes | None) -> None:
    assert custom_id(value) == ""
    assert error(DeadReason.NOT_JSON, item(value))["custom_id"] == ""


def test_the_short_form_names_itself_too() -> None:
    assert custom_id(b'{"id": "7", "prompt": "p"}') == "7"


def test_a_dead_letter_without_an_error_object_still_has_its_message() -> None:
    headers = tuple(each for each in dead(DeadReason.INVALID, item()).headers if each[0] != "dlq.error.openai")
    record = Record(topic="dlq", partition=2, offset=1, timestamp_ms=0, key=None, value=ITEM, headers=headers)
    line = outcome_line(record, dead=True)
    assert line is not None
    told = json.loads(line.value)["response"]["body"]["error"]
    assert ErrorObject.model_validate(told).message == "seed must be positive"


def test_a_result_is_passed_on_as_it_stands_and_placed_by_its_line() -> None:
    source = item(ITEM, ("x-line", b"17"), ("x-retry", b"2"))
    record = Record(
        topic="res", partition=2, offset=3, timestamp_ms=0, key=None, value=b"{}", headers=result_headers(source, "g")
    )
    line = outcome_line(record, dead=False)
    assert line is not None
    assert (line.place, line.partition, line.offset) == (LinePlace(True, 17), 2, 40)
    assert (line.value, line.retry, line.ok) == (b"{}", 2, True)


def test_an_item_of_another_producer_is_placed_by_where_it_stood() -> None:
    line = outcome_line(dead(DeadReason.INVALID, item()), dead=True)
    assert line is not None
    assert (line.place, line.ok) == (LinePlace(False, 2, 40), False)


@pytest.mark.parametrize("headers", [(), (("x-source-partition", b"0"),), (("x-source-offset", "²".encode()),)])
def test_a_record_that_says_not_whose_it_is_is_no_outcome(headers: tuple[tuple[str, bytes], ...]) -> None:
    assert outcome_line(item(b"{}", *headers), dead=False) is None
