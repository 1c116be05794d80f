"""A request of too many parts is seen before the parser has to look at them."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.frontend.message_fields import FIELDS_MAX, too_many
from sidecar.triton import wire
from tests.fakes.sidecar import Sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request, read_all


def many(kind: str, count: int = FIELDS_MAX) -> Any:
    request = ids_request("r")
    tensor = request.inputs[0] if kind == "parameters of an input" else None
    if kind == "parameters of an output":
        tensor = request.outputs.add(name="output_ids")
    for number in range(count):
        if kind == "inputs":
            request.inputs.add(name="input_ids")
        elif kind == "outputs":
            request.outputs.add(name="output_ids")
        elif kind == "raw contents":
            request.raw_input_contents.append(b"")
        else:
            (request if tensor is None else tensor).parameters[f"p{number}"].bool_param = True
    return request


KINDS = ("inputs", "outputs", "raw contents", "parameters", "parameters of an input", "parameters of an output")


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_of_a_kind_are_seen_with_the_id(kind: str) -> None:
    assert too_many(many(kind).SerializeToString()) == "r"
    assert too_many(many(kind, 1000).SerializeToString()) is None


def test_values_do_not_count() -> None:
    request = ids_request("r", ids=tuple(range(100_000)))
    request.inputs[0].contents.bytes_contents.extend([b"x"] * 10_000)
    assert too_many(request.SerializeToString()) is None


@given(st.binary(max_size=200))
def test_what_is_no_message_is_not_judged(raw: bytes) -> None:
    assert too_many(raw) is None


@given(st.integers(0, 2**63 - 1), st.text(max_size=20), st.floats(allow_nan=False))
def test_fields_of_any_kind_are_passed_over(number: int, text: str, real: float) -> None:
    request = many("parameters")
    request.parameters["a"].int64_param = number
    request.parameters["b"].double_param = real
    request.model_name = text
    assert too_many(request.SerializeToString()) == "r"


async def test_a_request_of_too_many_parts_is_refused_and_its_neighbour_lives(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream()
    await call.write(many("parameters"))
    await call.write(ids_request("good"))
    await call.done_writing()
    (await triton.next()).tokens(5, final=True)
    refused, good = await read_all(call)
    expected = f"[request id: r] the request has more than {FIELDS_MAX} inputs, outputs, parameters and raw contents"
    assert (refused.error_message, refused.infer_response.id, good.infer_response.id) == (expected, "r", "good")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await sidecar.unary("ModelInfer", many("parameters"), wire.InferResponse)
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, expected)
