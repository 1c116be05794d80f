"""Which calls for the offline lane run in slices, and which run whole because slices would change or drop something."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.frontend.caller_request import parse
from sidecar.frontend.models import ScheduledModel
from sidecar.frontend.offline_call import token_call
from sidecar.token_call import TokenCall
from sidecar.triton import wire
from tests.fakes.log import WordTokens

IDS = ScheduledModel(name="tensorrt_llm", engine_model="tensorrt_llm", tokens_max=64, tokens=None)
TEXT = ScheduledModel(name="ensemble", engine_model="tensorrt_llm", tokens_max=64, tokens=WordTokens())


def ids_request(**inputs: tuple[str, Any]) -> Any:
    request = wire.InferRequest(model_name="tensorrt_llm", id="r")
    wire.add_tensor(request, "input_ids", "INT32", (1, 2, 3), (1, 3))
    wire.add_tensor(request, "input_lengths", "INT32", (3,), (1, 1))
    wire.add_tensor(request, "request_output_len", "INT32", (7,), (1, 1))
    for name, (datatype, value) in inputs.items():
        wire.add_tensor(request, name, datatype, (value,), (1, 1))
    return request


def text_request(text: bytes = b"one two", **inputs: tuple[str, Any]) -> Any:
    request = wire.InferRequest(model_name="ensemble", id="r")
    wire.add_tensor(request, "text_input", "BYTES", (text,), (1, 1))
    wire.add_tensor(request, "max_tokens", "INT32", (7,), (1, 1))
    for name, (datatype, value) in inputs.items():
        wire.add_tensor(request, name, datatype, (value,), (1, 1))
    return request


def sliced(request: Any, model: ScheduledModel = IDS, *, excludes_input: bool = True) -> TokenCall | None:
    return token_call(parse(request), model, excludes_input=excludes_input)


def test_a_greedy_call_is_sliced_with_all_it_asks_for() -> None:
    request = ids_request(end_id=("INT32", 9), min_tokens=("INT32", 2), seed=("UINT64", 5), runtime_top_k=("INT32", 1))
    call = sliced(request)
    assert call is not None
    assert (call.prompt_ids, call.output_tokens_max, call.end_id) == ((1, 2, 3), 7, 9)
    assert (call.sampling.min_tokens, call.sampling.seed, call.sampling.top_k) == (2, 5, 1)


@pytest.mark.parametrize("name", ["input_ids", "input_lengths", "end_id", "streaming"])
def test_what_has_a_datatype_that_is_not_the_engines_runs_whole_for_the_engine_to_refuse(name: str) -> None:
    request = ids_request(end_id=("INT32", 9), streaming=("BOOL", True))
    assert sliced(request) is not None
    (at,) = (at for at, each in enumerate(request.inputs) if each.name == name)
    request.inputs[at].datatype = "FP32"
    assert sliced(request) is None


def test_only_the_ids_that_input_lengths_names_are_the_prompt() -> None:
    request = ids_request()
    request.raw_input_contents[1] = wire.pack("INT32", (2,))
    call = sliced(request)
    assert call is not None
    assert call.prompt_ids == (1, 2)


@pytest.mark.parametrize(
    "inputs",
    [
        {"runtime_top_k": ("INT32", 2)},
        {"runtime_top_p": ("FP32", 0.9)},
        {"runtime_top_p": ("FP32", 0.9), "seed": ("UINT64", 5)},
        {"repetition_penalty": ("FP32", 1.2)},
        {"presence_penalty": ("FP32", 0.5)},
        {"frequency_penalty": ("FP32", 0.5)},
        {"num_return_sequences": ("INT32", 2)},
        {"beam_width": ("INT32", 2)},
        {"return_log_probs": ("BOOL", True)},
        {"return_perf_metrics": ("BOOL", True)},
        {"stop": ("BOOL", False)},
        {"anything": ("INT32", 1)},
        {"exclude_input_in_output": ("BOOL", False)},
    ],
)
def test_what_slices_would_change_or_drop_runs_whole(inputs: dict[str, tuple[str, Any]]) -> None:
    assert sliced(ids_request(**inputs)) is None


def test_a_text_that_is_drawn_at_random_runs_whole() -> None:
    assert sliced(text_request(top_p=("FP32", 0.9)), TEXT) is None
    assert sliced(text_request(top_k=("INT32", 1), top_p=("FP32", 0.9)), TEXT) is not None


def test_an_output_that_begins_with_the_prompt_runs_whole() -> None:
    stated = {"exclude_input_in_output": ("BOOL", True)}
    assert sliced(ids_request(), excludes_input=False) is None
    assert sliced(ids_request(**stated), excludes_input=False) is not None
    assert sliced(ids_request(streaming=("BOOL", True)), excludes_input=False) is not None
    assert sliced(ids_request(streaming=("BOOL", False)), excludes_input=False) is None
    assert sliced(text_request(), TEXT, excludes_input=False) is None
    assert sliced(text_request(stream=("BOOL", True)), TEXT, excludes_input=False) is not None


@pytest.mark.parametrize("name", ["input_ids", "input_lengths", "request_output_len"])
def test_what_lies_in_shared_memory_runs_whole(name: str) -> None:
    request = ids_request()
    at = [tensor.name for tensor in request.inputs].index(name)
    request.inputs[at].parameters["shared_memory_region"].string_param = "here"
    del request.raw_input_contents[at]
    assert sliced(request) is None


def test_parameters_for_triton_or_the_model_run_whole_and_those_served_here_do_not() -> None:
    ours = ids_request()
    for name in ("x-lane", "x-tenant", "ttft_objective_ms"):
        ours.parameters[name].string_param = "1"
    ours.parameters["timeout"].int64_param = 5
    ours.parameters["priority"].int64_param = 0
    ours.parameters[wire.EMPTY_FINAL].bool_param = True
    assert sliced(ours) is not None
    for name in ("sequence_id", "mine"):
        request = ids_request()
        request.parameters[name].int64_param = 1
        assert sliced(request) is None


def test_a_version_is_for_triton_to_find() -> None:
    request = ids_request()
    request.model_version = "7"
    assert sliced(request) is None


def test_the_outputs_that_a_slice_gives_may_be_asked_for_and_no_others() -> None:
    for names in (("output_ids",), ("output_ids", "sequence_length")):
        request = ids_request()
        for name in names:
            request.outputs.add(name=name)
        assert sliced(request) is not None
    request = ids_request()
    request.outputs.add(name="cum_log_probs")
    assert sliced(request) is None


@pytest.mark.parametrize("parameter", ["classification", "shared_memory_region"])
def test_an_output_that_goes_elsewhere_or_is_classified_runs_whole(parameter: str) -> None:
    request = ids_request()
    request.outputs.add(name="output_ids").parameters[parameter].int64_param = 1
    assert sliced(request) is None


def words_request(flat: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    request = ids_request()
    wire.add_tensor(request, "stop_words_list", "INT32", flat, shape)
    return request


def test_stop_words_are_read_as_the_engine_reads_them() -> None:
    for flat, shape, words in (
        ((8, 9, 7, 2, 3, -1), (1, 2, 3), ((8, 9), (7,))),
        ((-1, -1), (1, 2, 1), ()),
        ((), (1, 2, 0), ()),
    ):
        call = sliced(words_request(flat, shape))
        assert call is not None
        assert call.stop_words == words


@pytest.mark.parametrize("ends", [(3, 2, -1), (2, 2, -1), (0, 2, -1), (4, -1, -1)])
def test_stop_words_that_the_engine_refuses_run_whole_so_that_it_does(ends: tuple[int, ...]) -> None:
    assert sliced(words_request((8, 9, 7, *ends), (1, 2, 3))) is None
