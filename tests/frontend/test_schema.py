"""What is refused by a model's own description, in Triton's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from tritonclient.grpc import model_config_pb2

from sidecar.errors import BadRequestError
from sidecar.frontend.schema import ModelSchema, classified
from sidecar.triton import wire


def schema(batch_max: int = 8, *, optional: bool = True) -> ModelSchema:
    """ids [-1] and n [1] are required; w [2, -1] and s (text) may be optional."""
    config = model_config_pb2.ModelConfig(name="m", max_batch_size=batch_max)
    for name, datatype, shape, may_lack in (
        ("ids", "TYPE_INT32", [-1], False),
        ("n", "TYPE_INT32", [1], False),
        ("w", "TYPE_INT32", [2, -1], optional),
        ("s", "TYPE_STRING", [1], optional),
    ):
        config.input.add(name=name, data_type=model_config_pb2.DataType.Value(datatype), dims=shape, optional=may_lack)
    config.output.add(name="out", data_type=model_config_pb2.TYPE_INT32, dims=[-1])
    return ModelSchema.of(config)


def request_of(**inputs: tuple[str, Sequence[int]]) -> Any:
    """Inputs by name: datatype and shape. Their contents are not looked at here."""
    request = wire.InferRequest(model_name="m", id="r")
    for name, (datatype, shape) in {"ids": ("INT32", (1, 3)), "n": ("INT32", (1, 1)), **inputs}.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def refusal(request: Any, of: ModelSchema | None = None) -> str:
    with pytest.raises(BadRequestError) as raised:
        (of or schema()).check(request)
    return str(raised.value)


def test_what_fits_passes() -> None:
    schema().check(request_of(w=("INT32", (1, 2, 5)), s=("BYTES", (1, 1))))


def test_unknown_inputs_and_outputs_are_refused_by_name() -> None:
    assert refusal(request_of(x=("INT32", (1, 1)))) == "unexpected inference input 'x' for model 'm'"
    request = request_of()
    request.outputs.add(name="y")
    assert refusal(request) == "unexpected inference output 'y' for model 'm'"


def test_all_that_is_missing_is_named() -> None:
    request = wire.InferRequest(model_name="m", id="r")
    assert refusal(request) == (
        "[request id: r] expected number of inputs between 2 and 4 but got 0 inputs for model 'm'. Got input(s) [], "
        "but missing required input(s) ['ids','n']. Please provide all required input(s)."
    )
    assert refusal(request, schema(optional=False)).startswith("[request id: r] expected 4 inputs but got 0 inputs")


def test_enough_inputs_do_not_make_up_for_one_that_is_missing() -> None:
    request = request_of(w=("INT32", (1, 2, 5)))
    del request.inputs[1]
    assert "missing required input(s) ['n']" in refusal(request)


@pytest.mark.parametrize(("datatype", "shown"), [("FP32", "FP32"), ("INT64", "INT64"), ("NUMBER", "<invalid>")])
def test_another_datatype_is_refused(datatype: str, shown: str) -> None:
    assert refusal(request_of(n=(datatype, (1, 1)))) == (
        f"[request id: r] inference input 'n' data-type is '{shown}', but model 'm' expects 'INT32'"
    )


@pytest.mark.parametrize("shape", [(1, 2), (1,), (1, 1, 1)])
def test_another_shape_is_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    printed = ",".join(map(str, shape))
    text = f"[request id: r] unexpected shape for input 'n' for model 'm'. Expected [-1,1], got [{printed}]. NOTE: "
    assert refusal(request_of(n=("INT32", shape))).startswith(text)


def test_an_input_without_a_shape_is_refused() -> None:
    assert refusal(request_of(n=("INT32", ()))) == (
        "[request id: r] input 'n' has no shape but model requires batch dimension for 'm'"
    )


def test_the_input_whose_batch_differs_from_the_others_is_named() -> None:
    request = request_of(ids=("INT32", (3, 3)), s=("BYTES", (1, 1)))
    assert refusal(request) == "[request id: r] input 'ids' batch size does not match other inputs for 'm'"


@pytest.mark.parametrize(("batch", "bound"), [(9, "<= 8"), (0, ">= 1, not 0,")])
def test_a_batch_that_the_model_does_not_take_is_refused(batch: int, bound: str) -> None:
    request = request_of(ids=("INT32", (batch, 3)), n=("INT32", (batch, 1)))
    assert refusal(request) == f"[request id: r] inference request batch-size must be {bound} for 'm'"


def test_a_model_without_a_batch_dimension_takes_its_shapes_as_they_are() -> None:
    schema(0).check(request_of(ids=("INT32", (7,)), n=("INT32", (1,))))
    assert "got [1,7]" in refusal(request_of(ids=("INT32", (1, 7)), n=("INT32", (1,))), schema(0))


def test_no_classes_are_made_of_an_output_that_holds_texts() -> None:
    config = model_config_pb2.ModelConfig(name="m")
    config.output.add(name="ids", data_type=model_config_pb2.TYPE_INT32, dims=[-1])
    config.output.add(name="text", data_type=model_config_pb2.TYPE_STRING, dims=[-1])
    request = wire.InferRequest(model_name="m")
    for name in ("ids", "text"):
        request.outputs.add(name=name).parameters["classification"].int64_param = 2
    asking = ModelSchema.of(config)
    asking.check_classes(["ids"])
    with pytest.raises(BadRequestError, match="output 'text' of model 'm' holds texts"):
        asking.check_classes(classified(request))


@pytest.mark.parametrize(
    ("parameters", "beams_max", "excludes_input"),
    [
        ({}, None, False),
        ({"max_beam_width": "4", "exclude_input_in_output": "True"}, 4, True),
        ({"max_beam_width": "${max_beam_width}", "exclude_input_in_output": "${exclude_input_in_output}"}, None, False),
        ({"max_beam_width": "", "exclude_input_in_output": "false"}, None, False),
    ],
)
def test_what_an_engine_was_built_for_is_read_from_its_parameters(
    parameters: dict[str, str], beams_max: int | None, excludes_input: bool
) -> None:
    config = model_config_pb2.ModelConfig(name="m")
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    found = ModelSchema.of(config)
    assert (found.beams_max, found.excludes_input) == (beams_max, excludes_input)


@pytest.mark.parametrize(("versions", "version"), [([], ""), (["1"], "1"), (["9", "10", "2"], "10")])
def test_the_version_is_the_latest_that_is_served(versions: list[str], version: str) -> None:
    assert ModelSchema.of(model_config_pb2.ModelConfig(name="m"), versions).version == version


@pytest.mark.parametrize("asked", ["", "2", "02", "+2", " 2", "2x"])
def test_a_version_is_read_as_triton_reads_it(asked: str) -> None:
    request = wire.InferRequest(model_name="m", model_version=asked)
    ModelSchema.of(model_config_pb2.ModelConfig(name="m"), ["1", "2"]).check(request)
    ModelSchema.of(model_config_pb2.ModelConfig(name="m")).check(request)  # where nobody tells which there are


@pytest.mark.parametrize(
    ("asked", "text", "code"),
    [
        ("7", "Request for unknown model: 'm' version 7 is not found", grpc.StatusCode.NOT_FOUND),
        ("-1", "invalid model version specified '-1' ,", grpc.StatusCode.INVALID_ARGUMENT),
        ("0", "invalid model version specified '0' ,", grpc.StatusCode.INVALID_ARGUMENT),
        ("x", "failed to get model version from specified version string 'x'", grpc.StatusCode.INVALID_ARGUMENT),
        ("9" * 20, "failed to get model version", grpc.StatusCode.INVALID_ARGUMENT),
        ("9" * 5000, "failed to get model version", grpc.StatusCode.INVALID_ARGUMENT),
        ("\N{ARABIC-INDIC DIGIT ONE}", "failed to get model version", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_version_that_there_is_not_is_refused_in_tritons_words(asked: str, text: str, code: grpc.StatusCode) -> None:
    with pytest.raises(BadRequestError) as raised:
        ModelSchema.of(model_config_pb2.ModelConfig(name="m"), ["1", "2"]).check(
            wire.InferRequest(model_name="m", model_version=asked)
        )
    assert str(raised.value).startswith(text)
    assert raised.value.code is code
