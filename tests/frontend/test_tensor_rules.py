"""What is refused of a request before anything is read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from sidecar.errors import BadRequestError
from sidecar.frontend.tensor_rules import asked_by, check_well_formed
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
        check_well_formed(request)
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
    check_well_formed(request_of(raw=[bytes(6 * size[datatype])], datatype=datatype, shape=(2, 3)))


def test_a_scalar_without_a_shape_is_one_element() -> None:
    check_well_formed(request_of(raw=[bytes(4)]))


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
    check_well_formed(in_shared_memory(request, 0))


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
    request.parameters["ours"].uint64_param = 1
    check_well_formed(request, {"ours"})


def test_an_id_is_shown_as_triton_shows_it_but_not_without_end() -> None:
    assert asked_by("r1") == "[request id: r1] "
    assert asked_by("") == "[request id: <id_unknown>] "
    assert asked_by("x" * 1_000_000) == f"[request id: {'x' * 256}…] "
