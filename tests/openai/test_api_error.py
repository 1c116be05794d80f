"""What a program of the OpenAI package reads from a refusal."""

from __future__ import annotations

import json

import pytest

from sidecar.core.events import RejectReason
from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.openai.api_error import ApiError, api_error
from sidecar.token_call import RequestDeadError, RequestRejectedError


@pytest.mark.parametrize("reason", RejectReason)
def test_every_refusal_of_the_scheduler_has_a_status_of_its_own_kind(reason: RejectReason) -> None:
    found = api_error(RequestRejectedError(reason, "why"))
    assert 400 <= found.status < 600
    assert found.status != 500
    assert str(found) == "why"


def test_a_full_queue_says_when_to_try_again_in_whole_seconds() -> None:
    response = api_error(RequestRejectedError(RejectReason.QUEUE_FULL, "full", retry_after_s=1.2)).response()
    assert (response.status, response.headers["Retry-After"]) == (429, "2")
    assert json.loads(response.text or "")["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("reason", "status"),
    [(DeadReason.INVALID, 400), (DeadReason.TOO_LARGE, 413), (DeadReason.UNKNOWN_MODEL, 404)],
)
def test_what_the_reader_refuses_names_its_field(reason: DeadReason, status: int) -> None:
    found = api_error(DeadItemError(reason, "n must be 1", param="n"))
    assert found.status == status
    assert found.document()["error"] | {"code": None} == {
        "message": "n must be 1",
        "type": "invalid_request_error",
        "param": "n",
        "code": None,
    }


def test_a_failure_of_the_engine_is_the_engines_and_a_defect_of_ours_tells_its_kind_alone() -> None:
    assert api_error(RequestDeadError("INVALID_ARGUMENT: no", 1)).status == 400
    assert api_error(RequestDeadError("UNAVAILABLE: gone", 3)).status == 502
    ours = api_error(ValueError("the prompt"))
    assert (ours.status, str(ours)) == (500, "the sidecar failed: ValueError")


def test_an_error_of_the_api_stays_as_it_is() -> None:
    error = ApiError(401, "no key")
    assert api_error(error) is error
    assert error.document()["error"]["type"] == "authentication_error"
