"""What is read of a request, and what is refused of it before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from sidecar.errors import BadRequestError
from sidecar.frontend.caller_request import OURS, Parameter, asked_by, check_well_formed, parse
from sidecar.triton import wire


def request_of(*, raw: Sequence[bytes] = (), datatype: str = "INT32", shape: Sequence[int] = ()) -> Any:
    """A request with one input."""
    request = wire.InferRequest(model_name="m", id="r")
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    request.raw_input_contents.extend(raw)
    return request


def typed(field: str, values: Sequence[Any], datatype: str, shape: Sequence[int]) -> Any:
    request = request_of(datatype=datatype, shape=shape)
    getattr(request.inputs[0].contents, field).extend(values)
    request.inputs[0].contents.SetInParent()  # also without a value
    return request


def refusal(request: Any) -> str:
    with pytest.raises(BadRequestError) as raised:
        check_well_formed(parse(request))
    return str(raised.value)


MISMATCH = "[request id: r] input byte size mismatch for input 'x' for model 'm'. Expected {}, got {}"


@pytest.mark.parametrize(
    ("field", "datatype", "values", "shape", "expected", "got"),
    [
        ("int_contents", "INT32", [1] * 200_000, (1, 5), 20, 800_000),
        ("int_contents", "INT32", [1], (1, 5), 20, 4),
        ("int_contents", "INT16", [1, 2], (1, 1), 2, 4),
        ("int64_contents", "INT64", [1, 2], (1, 1), 8, 16),
        ("uint_contents", "UINT8", [1], (1, 2), 2, 1),
        ("uint64_contents", "UINT64", [1], (1, 2), 16, 8),
        ("fp32_contents", "FP32", [1.0, 2.0], (1, 1), 4, 8),
        ("fp64_contents", "FP64", [1.0, 2.0], (1, 1), 8, 16),
        ("bool_contents", "BOOL", [True, True], (1, 1), 1, 2),
        ("int_contents", "INT32", [1], (1, 0), 0, 4),
        ("int_contents", "INT32", [1], (2**62, 4), 2**66, 4),
        ("int_contents", "INT32", [], (1, 2**62), 2**64, 0),
    ],
)
def test_typed_contents_must_be_as_many_as_the_shape_says(
    field: str, datatype: str, values: list[Any], shape: tuple[int, ...], expected: int, got: int
) -> None:
    assert refusal(typed(field, values, datatype, shape)) == MISMATCH.format(expected, got)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((1, 3), 2, 12), ((1, 3), 16, 12), ((2**62, 4), 0, 2**66), ((1, 2**62), 0, 2**64), ((), 0, 4), ((0, 4), 4, 0)],
)
def test_raw_contents_must_fill_the_shape(shape: tuple[int, ...], size: int, expected: int) -> None:
    assert refusal(request_of(raw=[bytes(size)], shape=shape)) == MISMATCH.format(expected, size)


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "INT16", "FP16", "BF16", "INT32", "FP32", "INT64", "FP64"])
def test_raw_contents_of_every_datatype_pass_if_they_fill_the_shape(datatype: str) -> None:
    size = {"BOOL": 1, "INT8": 1, "INT16": 2, "FP16": 2, "BF16": 2, "INT32": 4, "FP32": 4, "INT64": 8, "FP64": 8}
    check_well_formed(parse(request_of(raw=[bytes(6 * size[datatype])], datatype=datatype, shape=(2, 3))))


def test_a_scalar_without_a_shape_is_one_element() -> None:
    check_well_formed(parse(request_of(raw=[bytes(4)])))


@pytest.mark.parametrize("datatype", ["", "NUMBER", "STRING", "int32"])
def test_a_datatype_that_triton_does_not_know_is_refused(datatype: str) -> None:
    assert "input 'x' data-type is '<invalid>'" in refusal(request_of(raw=[bytes(4)], datatype=datatype, shape=(1,)))
    assert "input 'x' data-type is '<invalid>'" in refusal(typed("int_contents", [], datatype, (1,)))


@pytest.mark.parametrize("shape", [(-1,), (1, -3), (-2, -3), (-(2**63), 1)])
def test_a_negative_dimension_is_refused(shape: tuple[int, ...]) -> None:
    printed = ",".join(map(str, shape))
    text = f"[request id: r] All input dimensions should be specified for input 'x' for model 'm', got [{printed}]"
    assert refusal(request_of(raw=[bytes(12)], shape=shape)) == text


@pytest.mark.parametrize(("field", "of"), [("int64_contents", "INT64"), ("uint_contents", "UINT32")])
def test_contents_in_the_field_of_another_datatype_are_refused(field: str, of: str) -> None:
    assert refusal(typed(field, [1], "INT32", (1,))) == (
        f"unexpected explicit tensor data for input tensor 'x' for model 'm' of type '{of}', expected datatype 'INT32'"
    )


def test_contents_in_two_fields_are_refused() -> None:
    request = typed("int_contents", [1], "INT32", (1,))
    request.inputs[0].contents.int64_contents.append(2)
    assert "binary data was already supplied" in refusal(request)


def test_raw_and_typed_contents_together_are_refused() -> None:
    request = typed("int_contents", [1], "INT32", (1,))
    request.raw_input_contents.append(bytes(4))
    assert refusal(request).startswith("contents field must not be specified when using raw_input_contents for 'x'")


def test_an_input_without_any_contents_is_refused() -> None:
    assert refusal(request_of(shape=(1,))) == "unable to find data for input tensor 'x' for model 'm' in request."


def test_fewer_raw_contents_than_inputs_are_refused_by_the_input_that_has_none() -> None:
    request = request_of(raw=[bytes(4)], shape=(1,))
    request.inputs.add(name="y", datatype="INT32", shape=(1,))
    assert "for input tensor 'y'" in refusal(request)


def test_more_raw_contents_than_inputs_are_refused_with_both_numbers() -> None:
    request = request_of(raw=[bytes(4), bytes(4), bytes(4)], shape=(1,))
    assert refusal(request) == "[request id: r] 3 raw_input_contents for 1 inputs that take some"


def test_an_input_given_twice_is_refused() -> None:
    request = request_of(raw=[bytes(4), bytes(4)], shape=(1,))
    request.inputs.add(name="x", datatype="INT32", shape=(1,))
    assert refusal(request) == "[request id: r] input 'x' already exists in request"


def in_shared_memory(request: Any, at: int) -> Any:
    request.inputs[at].parameters["shared_memory_region"].string_param = "here"
    request.inputs[at].parameters["shared_memory_byte_size"].int64_param = 12
    return request


def test_an_input_in_shared_memory_takes_no_raw_contents() -> None:
    request = request_of(raw=[bytes(4)], shape=(1, 3))
    request.inputs.add(name="y", datatype="INT32", shape=(1,))
    check_well_formed(parse(in_shared_memory(request, 0)))


def test_an_input_in_shared_memory_with_contents_is_refused() -> None:
    request = in_shared_memory(typed("int_contents", [1], "INT32", (1,)), 0)
    assert refusal(request).startswith("unexpected 'content' provided when using shared memory for input tensor 'x'")


@pytest.mark.parametrize(
    ("raw", "shape", "text"),
    [
        (wire.pack("BYTES", [b"a", b"b"]), (1, 1), "unexpected number of string elements 2"),
        (wire.pack("BYTES", [b"a"] * 1000), (1, 1), "unexpected number of string elements 2"),  # no further is counted
        (wire.pack("BYTES", [b"a"]), (1, 2), "expected 2 string elements"),
        (b"", (1, 1), "expected 1 string elements"),
        (b"\x09\0", (1, 1), "expecting 4 bytes but only 2 bytes available"),
        (b"\x09\0\0\0ab", (1, 1), "expecting string of length 9 but only 2 bytes available"),
        (b"\xff\xff\xff\xffab", (1, 1), "expecting string of length 4294967295"),
    ],
)
def test_strings_must_be_whole_and_as_many_as_the_shape_says(raw: bytes, shape: tuple[int, ...], text: str) -> None:
    refused = refusal(request_of(raw=[raw], datatype="BYTES", shape=shape))
    assert text in refused
    assert "'x'" in refused


@pytest.mark.parametrize(("count", "shape"), [(2, (1, 1)), (0, (1, 1)), (1, (1, 0))])
def test_typed_strings_must_be_as_many_as_the_shape_says(count: int, shape: tuple[int, ...]) -> None:
    assert "string elements" in refusal(typed("bytes_contents", [b"s"] * count, "BYTES", shape))


@pytest.mark.parametrize(
    ("name", "field", "value", "text"),
    [
        ("sequence_id", "bool_param", True, "expected int64_param or string_param."),
        ("sequence_start", "int64_param", 1, "expected bool_param."),
        ("sequence_end", "string_param", "true", "expected bool_param."),
        ("priority", "string_param", "1", "expected int64_param or uint64_param."),
        ("priority", "double_param", 1.0, "expected int64_param or uint64_param."),
        ("timeout", "uint64_param", 1, "expected int64_param."),
        ("timeout", "string_param", "1", "expected int64_param."),
        (wire.EMPTY_FINAL, "int64_param", 1, "expected bool_param."),
        (wire.EMPTY_FINAL, "string_param", "true", "expected bool_param."),
        ("mine", "uint64_param", 1, "expected int64_param, bool_param, or string_param."),
    ],
)
def test_a_parameter_of_a_type_that_triton_does_not_take_is_refused_by_name(
    name: str, field: str, value: Any, text: str
) -> None:
    request = request_of(raw=[bytes(4)])
    setattr(request.parameters[name], field, value)
    assert refusal(request) == f"invalid value type for '{name}' parameter, {text}"


@pytest.mark.parametrize("name", ["mine", "priority", wire.EMPTY_FINAL, "sequence_id"])
def test_a_parameter_without_a_value_is_refused_by_name(name: str) -> None:
    request = request_of(raw=[bytes(4)])
    request.parameters.get_or_create(name)
    assert refusal(request).startswith(f"invalid value type for '{name}' parameter")


@pytest.mark.parametrize("name", ["triton_final_response", "triton_x"])
def test_a_parameter_that_triton_keeps_for_itself_is_refused(name: str) -> None:
    request = request_of(raw=[bytes(4)])
    request.parameters[name].bool_param = True
    assert refusal(request).startswith("parameter keys starting with 'triton_' are reserved")


def test_parameters_of_the_sidecar_may_have_any_type() -> None:
    request = request_of(raw=[bytes(4)])
    for name in OURS:
        request.parameters[name].uint64_param = 1
    check_well_formed(parse(request))


def test_an_id_is_shown_as_triton_shows_it_but_not_without_end() -> None:
    assert asked_by("r1") == "[request id: r1] "
    assert asked_by("") == "[request id: <id_unknown>] "
    assert asked_by("x" * 1_000_000) == f"[request id: {'x' * 256}…] "


def full_request() -> Any:
    """A request with a bit of everything."""
    request = wire.InferRequest(model_name="chat", model_version="2", id="mine")
    wire.add_tensor(request, "input_ids", "INT32", (7, 8, 9), (1, 3))
    request.inputs.add(name="w", datatype="FP32", shape=(2, 1)).parameters["shared_memory_region"].string_param = "s"
    request.inputs[1].parameters["shared_memory_byte_size"].int64_param = 8
    wire.add_tensor(request, "stop", "BOOL", (False,), (1, 1))
    request.outputs.add(name="output_ids")
    request.outputs.add(name="top").parameters["classification"].int64_param = 3
    request.parameters["x-lane"].string_param = "offline"
    request.parameters["temperature"].double_param = 0.5
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def test_all_of_a_request_is_read() -> None:
    asked = parse(full_request())
    assert (asked.id, asked.model, asked.version, asked.batch) == ("mine", "chat", "2", 2)
    assert [(each.name, each.shape, each.shared_bytes) for each in asked.tensors] == [
        ("input_ids", (1, 3), None),
        ("w", (2, 1), 8),
        ("stop", (1, 1), None),
    ]
    assert (asked.values("input_ids"), asked.values("w"), asked.values("none")) == ((7, 8, 9), None, None)
    assert (asked.scalar("stop", None), asked.scalar("w", 5)) == (False, 5)
    assert (asked.raw("input_ids"), asked.raw("w")) == (wire.pack("INT32", (7, 8, 9)), b"")
    assert (asked.classified, asked.wants("output_ids"), asked.wants("other")) == (["top"], True, False)
    assert asked.parameters["temperature"] == Parameter(kind="double_param", value=0.5)
    assert (asked.flag("triton_enable_empty_final_response"), asked.flag("x-lane")) == (True, False)


def test_typed_contents_are_read_like_raw_ones() -> None:
    asked = parse(typed("int64_contents", [5, 6], "INT64", (1, 2)))
    assert (asked.values("x"), asked.raw("x")) == ((5, 6), b"")
    with pytest.raises(BadRequestError, match=r"^input 'x' \(FP16\): "):
        parse(request_of(raw=[bytes(2)], datatype="FP16")).values("x")


def test_reading_and_checking_leave_the_message_as_it_came() -> None:
    request = full_request()
    before = request.SerializeToString(deterministic=True)
    asked = parse(request)
    check_well_formed(asked)
    asked.flag("none")
    assert asked.size == len(before)
    assert request.SerializeToString(deterministic=True) == before


def test_an_engine_gets_the_message_under_our_id_without_what_is_served_here() -> None:
    asked = parse(full_request())
    for number in (1, 2):  # a dispatch may be tried again
        message = asked.for_engine("tensorrt_llm", f"o1.{number}")
        assert (message.id, message.model_name, message.model_version) == (f"o1.{number}", "tensorrt_llm", "2")
        assert message.parameters.keys() == {"temperature", "triton_enable_empty_final_response"}
        assert [each.name for each in message.inputs] == ["input_ids", "w", "stop"]
    assert (asked.id, asked.model) == ("mine", "chat")
