"""Tensors in and out of the KServe messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import BadRequestError, MalformedAnswerError
from sidecar.triton import wire

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "UINT64": st.integers(0, 2**64 - 1),
    "FP32": st.floats(width=32, allow_nan=False),
    "BOOL": st.booleans(),
    "BYTES": st.binary(max_size=40),
}


@given(data=st.data(), datatype=st.sampled_from(sorted(VALUES)))
def test_what_is_packed_is_unpacked(data: st.DataObject, datatype: str) -> None:
    values = tuple(data.draw(st.lists(VALUES[datatype], max_size=20)))
    assert wire.unpack(datatype, wire.pack(datatype, values)) == values


@given(raw=st.binary(max_size=64), datatype=st.sampled_from(sorted(VALUES)))
def test_any_bytes_are_values_or_a_value_error(raw: bytes, datatype: str) -> None:
    try:
        values = wire.unpack(datatype, raw)
    except ValueError:
        return
    assert len(wire.pack(datatype, values)) == len(raw)


PARTS_MAX = 4096


def many(kind: str, count: int = PARTS_MAX) -> Any:
    request = wire.InferRequest(model_name="tensorrt_llm", id="r")
    wire.add_tensor(request, "input_ids", "INT32", (1, 2, 3), (1, 3))
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
    assert wire.id_if_beyond(PARTS_MAX, many(kind).SerializeToString()) == "r"
    assert wire.id_if_beyond(PARTS_MAX, many(kind, 1000).SerializeToString()) is None


def test_values_do_not_count() -> None:
    request = wire.InferRequest(id="r")
    wire.add_tensor(request, "input_ids", "INT32", range(100_000), (1, 100_000))
    request.inputs[0].contents.bytes_contents.extend([b"x"] * 10_000)
    assert wire.id_if_beyond(PARTS_MAX, request.SerializeToString()) is None


@given(st.binary(max_size=200))
def test_what_is_no_message_is_not_judged(raw: bytes) -> None:
    assert wire.id_if_beyond(PARTS_MAX, raw) is None


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


UNKNOWN_FIELDS = {
    "a group": varint(1000 << 3 | 3) + varint(1000 << 3 | 4),
    "a group with a field": varint(1000 << 3 | 3) + varint(9 << 3) + b"\x07" + varint(1000 << 3 | 4),
    "groups inside each other": varint(99 << 3 | 3) + varint(98 << 3 | 3) + varint(98 << 3 | 4) + varint(99 << 3 | 4),
    "64 bits": varint(1000 << 3 | 1) + b"12345678",
    "32 bits": varint(1000 << 3 | 5) + b"1234",
    "the longest number": varint(1000 << 3) + b"\xff" * 9 + b"\x01",
}


@pytest.mark.parametrize("before", UNKNOWN_FIELDS.values(), ids=UNKNOWN_FIELDS)
@pytest.mark.parametrize("kind", ["parameters", "parameters of an input"])
def test_no_field_that_the_parser_passes_over_hides_too_many_of_a_kind(kind: str, before: bytes) -> None:
    raw = before + many(kind).SerializeToString()
    assert wire.InferRequest.FromString(raw).id == "r"  # it is a message
    assert wire.id_if_beyond(PARTS_MAX, raw) == "r"


@given(st.integers(0, 2**63 - 1), st.text(max_size=20), st.floats(allow_nan=False))
def test_fields_of_any_kind_are_passed_over(number: int, text: str, real: float) -> None:
    request = many("parameters")
    request.parameters["a"].int64_param = number
    request.parameters["b"].double_param = real
    request.model_name = text
    assert wire.id_if_beyond(PARTS_MAX, request.SerializeToString()) == "r"


def test_typed_contents_are_read_as_well_as_raw_ones() -> None:
    request = wire.InferRequest()
    request.inputs.add(name="max_tokens", datatype="INT32", shape=[1, 1]).contents.int_contents.append(7)
    assert wire.scalar(request, "max_tokens", 0) == 7


def test_a_tensor_in_shared_memory_has_no_raw_contents_of_its_own() -> None:
    request = wire.InferRequest()
    there = request.inputs.add(name="input_ids", datatype="INT32", shape=[1, 4])
    there.parameters["shared_memory_region"].string_param = "region"
    wire.add_tensor(request, "request_output_len", "INT32", (9,), (1, 1))
    assert wire.input_values(request, "input_ids") is None
    assert wire.scalar(request, "request_output_len", 0) == 9


def test_bytes_that_are_no_tensor_are_refused_by_the_inputs_name() -> None:
    request = wire.InferRequest()
    request.inputs.add(name="max_tokens", datatype="INT32", shape=[1, 1])
    request.raw_input_contents.append(b"\1\2\3")
    with pytest.raises(BadRequestError, match="'max_tokens'"):
        wire.scalar(request, "max_tokens", 0)


def response(**outputs: tuple[str, tuple[int, ...], tuple[Any, ...]]) -> Any:
    answer = wire.InferResponse(model_name="m")
    for name, (datatype, shape, values) in outputs.items():
        answer.outputs.add(name=name, datatype=datatype, shape=shape)
        answer.raw_output_contents.append(wire.pack(datatype, values))
    return answer


def test_token_ids_without_a_shape_are_an_answer_that_cannot_be_read() -> None:
    with pytest.raises(MalformedAnswerError, match=r"has the shape \[\]"):
        wire.output_ids(response(output_ids=("INT32", (), (4,))))
