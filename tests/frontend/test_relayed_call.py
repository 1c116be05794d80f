"""One caller's request on its way to the engine and back, without a driver: what the caller is given, and when."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from sidecar.call import Timeline
from sidecar.core.events import Dispatch, Ended, Failed, Lost, Stopped
from sidecar.core.request import DispatchKind, EndReason, Lane, Request
from sidecar.frontend.caller_request import parse
from sidecar.frontend.relayed_call import RelayedCall
from sidecar.frontend.statuses import Booked, CallerError
from sidecar.triton import wire

DISPATCH = Dispatch(
    request_id="o1",
    engine="e0",
    slots=1,
    output_tokens=8,
    prompt_tokens=None,
    kind=DispatchKind.ONLINE,
    queue_wait_s=0.0,
)
ENDED = Ended(request_id="o1", reason=EndReason.END_ID, output_tokens=1)


class Caller:
    """What a caller heard of one request for three ids, whose end id is 2."""

    def __init__(self, lane: Lane = Lane.ONLINE, *, empty_final: bool = False) -> None:
        message = wire.InferRequest(model_name="chat", id="mine")
        wire.add_tensor(message, "input_ids", "INT32", (1, 2, 3), (1, 3))
        wire.add_tensor(message, "end_id", "INT32", (2,), (1, 1))
        message.parameters["x-lane"].string_param = lane.value
        if empty_final:
            message.parameters[wire.EMPTY_FINAL].bool_param = True
        request = Request(id="o1", lane=lane, model="m", arrived_s=0.0, prompt_tokens=3, output_tokens_max=8)
        self.responses: list[Any] = []
        self.ends: list[CallerError | None] = []
        self.call = RelayedCall(parse(message), "m", request, (), self._deliver, self._over, "7")

    def _deliver(self, response: Any) -> None:
        answer = response.infer_response
        self.responses.append((answer.id, wire.output_values(answer, "output_ids"), wire.is_final(answer)))

    def _over(self, booked: Booked, error: CallerError | None) -> None:
        assert booked == self.call.booked
        self.ends.append(error)


def ids(*values: int, final: bool = False) -> Any:
    answer = wire.StreamResponse()
    answer.infer_response.id = "t-o1.1"
    answer.infer_response.parameters[wire.FINAL].bool_param = final
    if values:
        wire.add_output(answer, "output_ids", "INT32", values, (1, 1, len(values)))
    return answer


def test_the_engine_gets_the_request_under_our_id_and_the_name_of_its_model() -> None:
    message = Caller().call.request(DISPATCH, "t-o1.1")
    assert (message.id, message.model_name, dict(message.parameters)) == ("t-o1.1", "m", {})


def test_what_the_engine_streams_is_given_at_once_under_the_callers_id() -> None:
    caller = Caller()
    assert [caller.call.receive(ids(4, 5)), caller.call.receive(ids(2, final=True))] == [2, 1]
    assert caller.responses == [("mine", (4, 5), False), ("mine", (2,), True)]
    assert caller.call.ended_by() is EndReason.END_ID
    caller.call.settled(ENDED, Timeline(0.0), over=True)
    assert caller.ends == [None]


@pytest.mark.parametrize("empty_final", [False, True])
def test_a_final_response_without_data_is_for_those_alone_who_asked_for_it(empty_final: bool) -> None:
    caller = Caller(empty_final=empty_final)
    assert caller.call.receive(ids(final=True)) == 0
    assert caller.responses == [("mine", None, True)] * empty_final


def test_offline_nothing_is_given_before_it_is_over_and_nothing_of_an_attempt_that_failed() -> None:
    caller = Caller(Lane.OFFLINE)
    caller.call.receive(ids(4))
    caller.call.settled(Failed(request_id="o1", reason="INTERNAL: why", retryable=True), Timeline(0.0), over=False)
    caller.call.receive(ids(5, 2, final=True))
    assert (caller.responses, caller.ends) == ([], [])
    caller.call.settled(ENDED, Timeline(0.0), over=True)
    assert (caller.responses, caller.ends) == ([("mine", (5, 2), True)], [None])


def test_what_is_stopped_while_it_waits_ends_with_a_final_response_without_tokens() -> None:
    caller = Caller()
    caller.call.settled(Stopped(request_id="o1", output_tokens=0), Timeline(0.0), over=True)
    assert (caller.responses, caller.ends) == ([("mine", (), True)], [None])


def test_a_stream_that_broke_ends_with_its_error_and_no_response() -> None:
    caller = Caller()
    caller.call.settled(Lost(request_id="o1"), Timeline(0.0), over=True)
    [error] = caller.ends
    assert caller.responses == []
    assert error is not None
    assert (error.code, str(error)[:18]) == (grpc.StatusCode.UNAVAILABLE, "[request id: mine]")
