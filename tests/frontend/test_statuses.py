"""What callers read when they get no response: their own ids, Triton's forms."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from sidecar.core.events import DeadLetter, Ended, Failed, Lost, Reject, RejectReason
from sidecar.core.request import EndReason
from sidecar.frontend.statuses import Booked, CallerError, failed, internal, of_generation, refused
from sidecar.token_call import RequestDeadError, RequestRejectedError

MINE = Booked(request_id="o2", caller_id="mine")
NAMELESS = Booked(request_id="o2", caller_id="")


@pytest.mark.parametrize(
    ("text", "booked", "shown"),
    [
        ("[request id: pod-o2.1] no", MINE, "[request id: mine] no"),
        ("[request id: pod-o2.17] no", NAMELESS, "[request id: <id_unknown>] no"),
        ("in ensemble 'e', [request id: pod-o2.1] no", MINE, "in ensemble 'e', [request id: mine] no"),
        ("[request id: pod-o22.1] no", MINE, "[request id: pod-o22.1] no"),
        (r"[request id: o2.1] \1", Booked(request_id="o2", caller_id=r"\g<0>"), r"[request id: \g<0>] \1"),
    ],
)
def test_an_engines_error_names_the_callers_id(text: str, booked: Booked, shown: str) -> None:
    error = failed(Failed(request_id="o2", reason=f"INVALID_ARGUMENT: {text}", retryable=False), booked)
    assert error is not None
    assert (error.code, str(error)) == (grpc.StatusCode.INVALID_ARGUMENT, shown)
    dead = refused(DeadLetter(reason=f"INTERNAL: {text}", attempts=3), booked)
    assert str(dead) == f"given up after 3 attempts: {shown}"
    assert dead.ran is not shown.startswith("[request id: ")


@pytest.mark.parametrize(
    ("text", "ran", "code"),
    [
        ("[request id: o2.1] input byte size mismatch", False, "INVALID_ARGUMENT"),
        ("[request id: o2.1] Exceeds maximum queue size", False, "UNAVAILABLE"),
        ("Request for unknown model: 'm' version 7 is not found", False, "NOT_FOUND"),
        ("Unable to find shared memory region: 'here'", False, "NOT_FOUND"),
        ("GRPC server is shutting down and has stopped accepting new requests.", False, "UNAVAILABLE"),
        ("tensor 'beam_width': this engine has one beam", True, "INTERNAL"),
        ("in ensemble 'e', [request id: o2.1] no", True, "INTERNAL"),
        ("unexpected CUDA error", True, "INTERNAL"),
    ],
)
def test_what_triton_did_not_give_to_the_model_is_told_by_the_status_of_a_unary_call(
    text: str, ran: bool, code: str
) -> None:
    for error in (
        failed(Failed(request_id="o2", reason=f"INTERNAL: {text}", retryable=False), MINE),
        refused(DeadLetter(reason=f"INTERNAL: {text}", attempts=1), MINE),
    ):
        assert error is not None
        assert (error.ran, error.code.name) == (ran, code)


def test_a_broken_connection_names_the_callers_id() -> None:
    error = failed(Lost(request_id="o2"), MINE)
    assert error is not None
    assert (error.code, error.ran) == (grpc.StatusCode.UNAVAILABLE, True)
    assert str(error).startswith("[request id: mine] ")
    assert failed(Ended(request_id="o2", reason=EndReason.LENGTH, output_tokens=1), MINE) is None


@pytest.mark.parametrize("reason", RejectReason)
def test_what_the_scheduler_refuses_begins_as_tritons_errors_do(reason: RejectReason) -> None:
    error = refused(Reject(reason=reason, message="no", retry_after_s=None), MINE)
    expired = reason is RejectReason.EXPIRED
    assert str(error) == f"[request id: mine] {'Request timeout expired: ' if expired else ''}no"
    assert error.ran is (reason in (RejectReason.EXPIRED, RejectReason.TOO_LARGE))
    again = of_generation(RequestRejectedError(reason, "no", 2.0), MINE)
    assert str(again) == f"{error}; try again in 2 s"
    assert dict(again.trailing)["retry-after-ms"] == "2000"


def test_the_hint_is_google_rpcs_too_with_the_code_and_the_text_of_the_status() -> None:
    error = CallerError(grpc.StatusCode.RESOURCE_EXHAUSTED, "many wait\ud800", 2.5)
    found = status_pb2.Status.FromString(dict(error.trailing)["grpc-status-details-bin"])
    info = error_details_pb2.RetryInfo()
    assert found.details[0].Unpack(info)
    assert (found.code, found.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "many wait?")
    assert info.retry_delay.ToMilliseconds() == 2500
    assert CallerError(grpc.StatusCode.RESOURCE_EXHAUSTED, "no hint").trailing == ()
    long = CallerError(grpc.StatusCode.RESOURCE_EXHAUSTED, "x" * 2_000, 1.0)
    assert [name for name, _ in long.trailing] == ["retry-after-ms"]  # a client would not take both texts


def test_what_a_generation_raises_is_told_in_the_callers_words() -> None:
    assert str(of_generation(RequestDeadError("INTERNAL: [request id: o2.1] no", 2), MINE)) == (
        "given up after 2 attempts: [request id: mine] no"
    )
    defect = of_generation(KeyError("a prompt"), MINE)
    assert (defect.code, str(defect)) == (grpc.StatusCode.INTERNAL, "[request id: mine] the sidecar failed: KeyError")
    assert str(internal(ValueError("a prompt"), "")) == "[request id: <id_unknown>] the sidecar failed: ValueError"


@pytest.mark.parametrize(
    ("code", "ran", "ends"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, False, False),
        (grpc.StatusCode.NOT_FOUND, False, False),
        (grpc.StatusCode.INVALID_ARGUMENT, True, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False, True),
        (grpc.StatusCode.UNAVAILABLE, False, True),
    ],
)
def test_with_triton_grpc_error_what_triton_could_not_take_does_not_end_the_stream(
    code: grpc.StatusCode, ran: bool, ends: bool
) -> None:
    assert CallerError(code, "no", ran=ran).ends_stream is ends
