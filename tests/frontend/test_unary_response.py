"""What becomes one response for a unary caller, and what does not."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from sidecar.errors import MalformedAnswerError
from sidecar.frontend.caller_request import parse
from sidecar.frontend.models import check_joinable
from sidecar.frontend.statuses import CallerError
from sidecar.frontend.unary_response import joined
from sidecar.triton import wire
from tests.fakes.sidecar import Sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request
from tests.triton.test_wire import response


def ids(*values: int, shape: tuple[int, ...] | None = None, datatype: str = "INT32") -> Any:
    return response(output_ids=(datatype, (1, 1, len(values)) if shape is None else shape, values))


def test_beams_are_joined_row_by_row() -> None:
    whole = joined(
        [
            response(output_ids=("INT32", (1, 2, 2), (1, 2, 10, 20)), sequence_length=("INT32", (1, 2), (2, 2))),
            response(output_ids=("INT32", (1, 2, 1), (3, 30)), sequence_length=("INT32", (1, 2), (1, 1))),
        ]
    )
    assert wire.output_values(whole, "output_ids") == (1, 2, 3, 10, 20, 30)
    assert list(whole.outputs[0].shape) == [1, 2, 3]
    assert wire.output_values(whole, "sequence_length") == (3, 3)


def test_of_other_outputs_the_last_stands() -> None:
    parts = [response(text_output=("BYTES", (1, 1), (word,)), cum_log_probs=("FP32", (1, 1), (n,)))
             for n, word in enumerate((b"a", b"b"))]  # fmt: skip
    assert wire.output_values(joined(parts), "cum_log_probs") == (1.0,)
    assert wire.output_values(joined(parts), "text_output") == (b"ab",)


def test_responses_without_data_add_nothing() -> None:
    part = response(output_ids=("INT32", (1, 1, 1), (4,)))
    assert joined([part, wire.InferResponse()]) == part


def test_an_output_that_only_some_responses_bring_is_not_lost() -> None:
    text, score = response(text_output=("BYTES", (1,), (b"a",))), response(cum_log_probs=("FP32", (1,), (0.5,)))
    for parts in ([text, score], [score, text]):
        whole = joined(parts)
        assert wire.output_values(whole, "text_output") == (b"a",)
        assert wire.output_values(whole, "cum_log_probs") == (0.5,)


@pytest.mark.parametrize("datatype", ["INT32", "INT64", "UINT64"])
def test_ids_are_joined_in_their_own_datatype(datatype: str) -> None:
    whole = joined([ids(5, datatype=datatype), ids(6, 7, datatype=datatype), ids(datatype=datatype)])
    assert wire.output_values(whole, "output_ids") == (5, 6, 7)
    assert (whole.outputs[0].datatype, list(whole.outputs[0].shape)) == (datatype, [1, 1, 3])


def test_rows_without_values_cost_nothing() -> None:
    whole = joined([ids(shape=(2**40, 0)), ids(shape=(2**40, 0))])
    assert list(whole.outputs[0].shape) == [2**40, 0]


UNFIT = {
    "two numbers of rows": (ids(5, 6, 7, 8, shape=(1, 2, 2)), ids(9)),
    "no shape": (ids(5, shape=()), ids(6)),
    "more than it holds": (ids(5, shape=(1, 1, 7)), ids(6)),
    "a negative shape": (ids(5, shape=(1, -1, -1)), ids(6, shape=(1, -1, -1))),
    "two datatypes": (ids(5), ids(6, datatype="INT64")),
    "no integers": (ids(5, datatype="FP32"), ids(6, datatype="FP32")),
    "too large a sum": (
        response(sequence_length=("INT32", (1,), (2**31 - 1,))),
        response(sequence_length=("INT32", (1,), (1,))),
    ),
    "no length": (
        response(sequence_length=("FP32", (1,), (1.5,))),
        response(sequence_length=("FP32", (1,), (1.5,))),
    ),
    "no texts": (response(text_output=("INT32", (1,), (1,))), response(text_output=("INT32", (1,), (1,)))),
}


@pytest.mark.parametrize("parts", UNFIT.values(), ids=UNFIT)
def test_parts_that_do_not_fit_each_other_are_an_answer_that_cannot_be_read(parts: tuple[Any, Any]) -> None:
    with pytest.raises(MalformedAnswerError, match="output '"):
        joined(parts)


def test_typed_contents_and_an_output_that_comes_twice_cannot_be_joined() -> None:
    typed = wire.InferResponse()
    typed.outputs.add(name="output_ids", datatype="INT32", shape=(1,)).contents.int_contents.append(5)
    twice = response(output_ids=("INT32", (1,), (1,)))
    twice.outputs.add(name="output_ids", datatype="INT32", shape=(1,))
    twice.raw_output_contents.append(wire.pack("INT32", (1,)))
    for unfit in (typed, twice):
        with pytest.raises(MalformedAnswerError):
            joined([unfit, ids(6)])


@pytest.mark.parametrize("parameter", ["shared_memory_region", "classification"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_streamed_output_in_shared_memory_or_in_classes_is_refused_for_a_unary_call(
    parameter: str, stream: bool
) -> None:
    request = ids_request("u", stream=stream)
    output = request.outputs.add(name="output_ids")
    if parameter == "classification":
        output.parameters[parameter].int64_param = 3
    else:
        output.parameters[parameter].string_param = "here"
    if not stream:
        check_joinable(parse(request))
        return
    with pytest.raises(CallerError) as raised:
        check_joinable(parse(request))
    assert raised.value.code is grpc.StatusCode.UNIMPLEMENTED
    assert "[request id: u] ModelInfer gives one response, but" in str(raised.value)
    assert "'output_ids' of a streamed request" in str(raised.value)


async def test_an_engines_answer_that_cannot_be_joined_is_told_as_the_engines(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
    request = await triton.next()
    for final in (False, True):
        answer = wire.StreamResponse(infer_response=ids(5, 6, shape=(1, 1, 2) if final else (1, 2, 1)))
        answer.infer_response.parameters[wire.FINAL].bool_param = final
        request.answers.put_nowait(answer)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert raised.value.details() == "[request id: u] output 'output_ids' comes in the shapes [[1, 1, 2], [1, 2, 1]]"
