"""What the scheduler is told of a request, and what is refused because it cannot be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from sidecar.core.request import Lane, Request
from sidecar.errors import BadRequestError, ModelRefusesError
from sidecar.frontend.caller_request import parse
from sidecar.frontend.models import RequestLengths, ScheduledModel, given_by, request_of
from sidecar.triton import wire
from tests.fakes.log import WordTokens

IDS = ScheduledModel(name="tensorrt_llm", engine_model="tensorrt_llm", tokens_max=64, tokens=None)
TEXT = replace(IDS, name="ensemble")


class Letters(WordTokens):
    """One token per character."""

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))


def ids_request(prompt: int = 5, *, output: int = 7, **scalars: int) -> Any:
    request = wire.InferRequest(model_name="tensorrt_llm", id="r")
    wire.add_tensor(request, "input_ids", "INT32", range(prompt), (1, prompt))
    for name, value in ({"input_lengths": prompt, "request_output_len": output} | scalars).items():
        wire.add_tensor(request, name, "INT32", (value,), (1, 1))
    return request


def text_request(text: bytes = b"x" * 40, *, output: int = 7) -> Any:
    request = wire.InferRequest(model_name="ensemble", id="r")
    wire.add_tensor(request, "text_input", "BYTES", (text,), (1, 1))
    wire.add_tensor(request, "max_tokens", "INT32", (output,), (1, 1))
    return request


def share(request: Any, *names: str, size: int = 0) -> Any:
    """These inputs lie in shared memory."""
    for at in range(len(request.inputs) - 1, -1, -1):
        tensor = request.inputs[at]
        if tensor.name in names:
            tensor.parameters["shared_memory_region"].string_param = "here"
            tensor.parameters["shared_memory_byte_size"].int64_param = size
            del request.raw_input_contents[at]
    return request


def lengths(prompt: int, output: int, sequences: int = 1) -> RequestLengths:
    return RequestLengths(prompt_tokens=prompt, output_tokens_max=output, sequences=sequences)


def booked(
    request: Any, model: ScheduledModel = IDS, given: Mapping[str, str] | None = None, deadline_s: float = inf
) -> Request:
    asked = parse(request)
    found = model.lengths(asked)
    return request_of(asked, model, found, given or {}, request_id="o1", arrived_s=100.0, deadline_s=deadline_s)


def refusal(request: Any, model: ScheduledModel = IDS, given: Mapping[str, str] | None = None) -> str:
    with pytest.raises(BadRequestError) as raised:
        booked(request, model, given)
    return str(raised.value)


@pytest.mark.parametrize("datatype", ["BYTES", "FP32", "FP16", "BOOL", "INT8"])
@pytest.mark.parametrize("name", ["request_output_len", "input_lengths", "num_return_sequences", "beam_width"])
def test_a_count_of_another_datatype_is_refused_by_name_where_no_modelconfig_is_known(name: str, datatype: str) -> None:
    request = ids_request(num_return_sequences=1, beam_width=1)
    (at,) = (at for at, each in enumerate(request.inputs) if each.name == name)
    request.inputs[at].datatype = datatype
    request.raw_input_contents[at] = b"\1"
    expected = f"inference input '{name}' data-type is '{datatype}', but model 'tensorrt_llm' expects 'INT32'"
    assert refusal(request) == f"[request id: r] {expected}"


def test_a_text_of_another_datatype_is_refused_by_name_where_no_modelconfig_is_known() -> None:
    request = text_request()
    request.inputs[0].datatype = "INT32"
    request.raw_input_contents[0] = wire.pack("INT32", (5,))
    expected = "inference input 'text_input' data-type is 'INT32', but model 'ensemble' expects 'BYTES'"
    assert refusal(request, TEXT) == f"[request id: r] {expected}"


def test_lengths_are_read_from_the_tensors() -> None:
    assert IDS.lengths(parse(ids_request(5, output=7))) == lengths(5, 7)
    assert IDS.lengths(parse(ids_request(5, num_return_sequences=3, beam_width=2))) == lengths(5, 7, 3)
    assert TEXT.lengths(parse(text_request())) == lengths(10, 7)
    assert replace(TEXT, tokens=Letters()).lengths(parse(text_request())) == lengths(40, 7)


def test_the_prompt_is_as_long_as_input_lengths_says() -> None:
    assert IDS.lengths(parse(ids_request(5, input_lengths=2))) == lengths(2, 7)


@pytest.mark.parametrize("length", [0, -1, 6])
def test_input_lengths_must_fit_the_ids(length: int) -> None:
    text = f"[request id: r] input 'input_lengths' is {length}, but input 'input_ids' holds 5"
    assert refusal(ids_request(5, input_lengths=length)) == text


@pytest.mark.parametrize("name", ["request_output_len", "beam_width", "num_return_sequences"])
@pytest.mark.parametrize("value", [0, -1, -(2**31)])
def test_what_counts_must_be_at_least_one(name: str, value: int) -> None:
    assert refusal(ids_request(**{name: value})) == f"[request id: r] input '{name}' must be >= 1, not {value}"


@pytest.mark.parametrize("beams_max", [None, 2])
def test_beams_are_refused_where_the_engine_is_known_to_have_fewer(beams_max: int | None) -> None:
    assert IDS.lengths(parse(ids_request(beam_width=2)), beams_max) == lengths(5, 7, 2)
    with pytest.raises(ModelRefusesError, match="input 'beam_width' is 2; model 'tensorrt_llm' has at most 1"):
        IDS.lengths(parse(ids_request(beam_width=2)), 1)


def test_an_empty_prompt_is_refused_by_name() -> None:
    assert "input 'input_ids' is missing or empty" in refusal(ids_request(0, input_lengths=1))
    assert "input 'text_input' is missing or empty" in refusal(text_request(b""), TEXT)
    assert "input 'text_input' is missing or empty" in refusal(wire.InferRequest(model_name="ensemble"), TEXT)


def test_a_text_that_is_no_text_is_refused_where_its_tokens_are_counted() -> None:
    counting = replace(TEXT, tokens=Letters())
    assert "input 'text_input' is not UTF-8" in refusal(text_request(b"\xff\xfe"), counting)
    assert TEXT.lengths(parse(text_request(b"\xff" * 40))) == lengths(10, 7)  # for the engine to refuse


def test_ids_in_shared_memory_are_counted_by_their_shape() -> None:
    assert IDS.lengths(parse(share(ids_request(5), "input_ids", size=20))) == lengths(5, 7)
    assert IDS.lengths(parse(share(ids_request(5), "input_ids", "input_lengths", size=20))) == lengths(5, 7)


def test_an_output_length_in_shared_memory_is_taken_for_all_that_the_engine_has_left() -> None:
    assert IDS.lengths(parse(share(ids_request(5), "request_output_len"))) == lengths(5, 59)
    assert IDS.lengths(parse(share(ids_request(99), "request_output_len"))) == lengths(99, 1)
    assert TEXT.lengths(parse(share(text_request(), "max_tokens"))) == lengths(10, 54)


@pytest.mark.parametrize(("size", "tokens"), [(40, 10), (3, 0), (10_000, 57), (-1, 0), (2**62, 57)])
def test_a_text_in_shared_memory_is_estimated_from_its_bytes_and_refuses_nothing(size: int, tokens: int) -> None:
    assert TEXT.lengths(parse(share(text_request(), "text_input", size=size))) == lengths(tokens, 7)


def test_ids_in_shared_memory_beside_typed_contents_have_no_prefix() -> None:
    request = wire.InferRequest(model_name="tensorrt_llm")
    request.inputs.add(name="input_ids", datatype="INT32", shape=(1, 200))
    request.inputs[0].parameters["shared_memory_region"].string_param = "here"
    for name, value in (("input_lengths", 200), ("request_output_len", 7)):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=(1, 1))
        tensor.contents.int_contents.append(value)
    assert IDS.lengths(parse(request)) == lengths(200, 7)
    assert booked(request).prefix_key == ""


def test_the_prefix_is_never_that_of_another_tensor() -> None:
    request = wire.InferRequest(model_name="tensorrt_llm")
    request.inputs.add(name="input_ids", datatype="INT32", shape=(1, 200))
    request.inputs[0].parameters["shared_memory_region"].string_param = "here"
    wire.add_tensor(request, "bad_words_list", "INT32", range(400), (1, 2, 200))
    assert booked(request).prefix_key == ""


@pytest.mark.parametrize("lane", ["OFFLINE", "offline ", "", "True", "x" * 1_000_000])
def test_a_lane_that_there_is_not_is_refused_and_shown_in_short(lane: str) -> None:
    refused = refusal(ids_request(), given={"x-lane": lane})
    assert refused.startswith("[request id: r] x-lane must be one of online, offline, not '")
    assert len(refused) < 200


def test_a_lane_is_taken_from_the_parameter_before_the_metadata() -> None:
    request = ids_request()
    request.parameters["x-lane"].string_param = "offline"
    assert booked(request, given={"x-lane": "online"}).lane is Lane.OFFLINE


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "-1", "0", "soon", "", "-inf", "True"])
@pytest.mark.parametrize("lane", ["online", "offline"])
def test_an_objective_that_is_no_time_is_refused_in_either_lane(text: str, lane: str) -> None:
    assert "ttft_objective_ms must be a number of milliseconds > 0" in refusal(
        ids_request(), given={"x-lane": lane, "ttft_objective_ms": text}
    )


def test_a_tenants_name_has_a_bound() -> None:
    assert booked(ids_request(), given={"x-tenant": "t" * 256}).tenant == "t" * 256
    assert "x-tenant has 257 characters" in refusal(ids_request(), given={"x-tenant": "t" * 257})


@pytest.mark.parametrize("tenant", ["a\nb", "\0", "\x1b[2J", "\N{RIGHT-TO-LEFT OVERRIDE}"])
def test_a_tenant_that_cannot_be_shown_is_refused_as_it_is_for_items(tenant: str) -> None:
    request = ids_request()
    request.parameters["x-tenant"].string_param = tenant
    assert refusal(request) == "[request id: r] x-tenant must be printable characters"


@pytest.mark.parametrize(("field", "value"), [("int64_param", 0), ("uint64_param", 0)])
def test_priority_0_is_the_default(field: str, value: int) -> None:
    request = ids_request()
    setattr(request.parameters["priority"], field, value)
    assert booked(request).lane is Lane.ONLINE


@pytest.mark.parametrize(("field", "value"), [("int64_param", 1), ("uint64_param", 2**63), ("int64_param", -1)])
def test_any_other_priority_is_refused_by_name(field: str, value: int) -> None:
    request = ids_request()
    setattr(request.parameters["priority"], field, value)
    assert "'priority'" in refusal(request)


@pytest.mark.parametrize(
    ("timeout_us", "deadline_s", "expected_s"),
    [(2_000_000, inf, 102.0), (2_000_000, 101.0, 101.0), (0, 107.0, 107.0), (-1, inf, inf), (1, inf, 100.000001)],
)
def test_a_timeout_bounds_the_wait_for_a_slot(timeout_us: int, deadline_s: float, expected_s: float) -> None:
    request = ids_request()
    request.parameters["timeout"].int64_param = timeout_us
    assert booked(request, deadline_s=deadline_s).deadline_s == expected_s


def test_what_is_given_twice_must_be_the_same() -> None:
    metadata: list[tuple[str, str | bytes]] = [
        ("x-lane", "offline"),
        ("other", "1"),
        ("other", "2"),
        ("x-lane", "offline"),
        ("x-lane-bin", b"online"),
    ]
    assert given_by(parse(ids_request()), metadata) == {"x-lane": "offline", "other": "2"}
    for name in ("x-lane", "x-tenant", "ttft_objective_ms"):
        with pytest.raises(BadRequestError, match=f"{name} is given twice: '1' and '2'"):
            given_by(parse(ids_request()), [(name, "1"), (name, "2")])
