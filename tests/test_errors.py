"""Errors by who has to act: their status says whether the same request may succeed later."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.errors import SidecarError
from sidecar.errors import (
    BadRequestError,
    EngineError,
    MalformedAnswerError,
    ModelRefusesError,
    StreamBrokenError,
    UnknownModelError,
)

CODES = st.sampled_from([*grpc.StatusCode])


@given(CODES, st.text())
def test_a_reason_is_read_back_as_what_it_was(code: grpc.StatusCode, message: str) -> None:
    assert EngineError.parse(EngineError(message, code).reason) == (code, message)


@pytest.mark.parametrize("text", ["", "no status", "SEGFAULT: at 0", "internal: in small letters", "INTERNAL", ": x"])
def test_any_other_text_is_an_internal_error_as_it_stands(text: str) -> None:
    assert EngineError.parse(text) == (grpc.StatusCode.INTERNAL, text)


@given(st.text())
def test_any_text_has_a_status_and_loses_nothing(text: str) -> None:
    code, message = EngineError.parse(text)
    assert text in (message, f"{code.name}: {message}")


@pytest.mark.parametrize("code", [*grpc.StatusCode])
def test_what_the_caller_asked_for_wrongly_is_not_tried_again_and_all_else_is(code: grpc.StatusCode) -> None:
    the_callers = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "ALREADY_EXISTS"}
    assert EngineError("x", code).retryable is (code.name not in the_callers)


def test_an_answer_that_cannot_be_read_is_nobodys_wrong_input() -> None:
    error = MalformedAnswerError("output 'output_ids' comes twice")
    assert (error.code, error.retryable) == (grpc.StatusCode.INTERNAL, True)


def test_callers_hear_invalid_argument_or_not_found_and_every_error_is_ours() -> None:
    assert BadRequestError.code is ModelRefusesError.code is grpc.StatusCode.INVALID_ARGUMENT
    assert UnknownModelError.code is grpc.StatusCode.NOT_FOUND
    for kind in (BadRequestError, ModelRefusesError, UnknownModelError, EngineError, StreamBrokenError):
        assert issubclass(kind, SidecarError)
    assert not issubclass(StreamBrokenError, EngineError)  # the engine may run on: its slot is not free
