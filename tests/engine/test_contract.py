"""One description of the engine's tensors: our config, the C++ engine's and what the sidecar sends agree with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from engine.calls import EngineCall, Figures, OutputPart, UnsupportedError
from engine.contract import INPUTS, NUMPY_TYPES, OUTPUTS, Inputs, TensorSpec, is_stop, outputs_of, read_call
from engine.sampling import EngineSampling
from sidecar.core.events import Dispatch
from sidecar.core.request import DispatchKind, EndReason, Lane, Request
from sidecar.driver.generation import Generation
from sidecar.inflight.batch import End
from sidecar.token_call import Sampling as SidecarSampling
from sidecar.token_call import TokenCall
from sidecar.triton.client import stop_request

REPOSITORY = Path(__file__).parents[2] / "model_repository"


def config(path: str) -> Any:
    return text_format.Parse((REPOSITORY / path / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def lines(tensors: tuple[TensorSpec, ...]) -> list[tuple[str, str, tuple[int, ...], bool]]:
    return [(each.name, f"TYPE_{each.dtype}", each.dims, each.optional) for each in tensors]


@pytest.mark.parametrize("path", ["engine_python/tensorrt_llm", "engine_cpp/tensorrt_llm"])
def test_both_engine_configs_are_the_contract(path: str) -> None:
    found = config(path)
    names = model_config_pb2.DataType.Name
    inputs = [(each.name, names(each.data_type), tuple(each.dims), each.optional) for each in found.input]
    outputs = [(each.name, names(each.data_type), tuple(each.dims), True) for each in found.output]
    assert inputs == lines(INPUTS)
    assert outputs == lines(OUTPUTS)
    assert found.model_transaction_policy.decoupled


def test_the_ensemble_asks_the_engine_only_for_tensors_of_the_contract() -> None:
    found = config("text/ensemble")
    (step,) = [each for each in found.ensemble_scheduling.step if each.model_name == "tensorrt_llm"]
    assert set(step.input_map) <= {tensor.name for tensor in INPUTS}
    assert set(step.output_map) <= {tensor.name for tensor in OUTPUTS}
    assert {tensor.name for tensor in INPUTS if not tensor.optional} <= set(step.input_map)
    types = {each.name: each.data_type for each in found.input}
    names = model_config_pb2.DataType.Name
    for tensor in INPUTS:
        source = step.input_map.get(tensor.name)
        if source in types:
            assert names(types[source]) == f"TYPE_{tensor.dtype}", tensor.name


async def test_what_the_sidecar_sends_is_read_as_it_was_meant() -> None:
    sampling = SidecarSampling(
        temperature=0.5, top_k=4, top_p=0.5, seed=7, repetition_penalty=1.5, presence_penalty=0.25,
        frequency_penalty=0.75, min_tokens=3,
    )  # fmt: skip
    token_call = TokenCall(
        prompt_ids=(5, 6, 7), output_tokens_max=99, sampling=sampling, stop_words=((8, 9), (10,)), end_id=2
    )
    request = Request(
        id="w", lane=Lane.OFFLINE, model="tensorrt_llm", arrived_s=0, prompt_tokens=3, output_tokens_max=99
    )
    dispatch = Dispatch(
        request_id="w", engine="e", output_tokens=16, slots=1, kind=DispatchKind.BACKFILL, queue_wait_s=0.0
    )
    call = read_call(arrays(Generation(request, token_call).request(dispatch, "id")))
    assert call == EngineCall(
        input_ids=(5, 6, 7),
        output_tokens_max=16,
        streaming=True,
        exclude_input=True,
        sampling=EngineSampling(
            temperature=0.5, top_k=4, top_p=0.5, seed=7, repetition_penalty=1.5, presence_penalty=0.25,
            frequency_penalty=0.75, min_tokens=3,
        ),
        end_id=2,
        stop_words=((8, 9), (10,)),
        returns=frozenset({"return_perf_metrics"}),
    )  # fmt: skip
    assert is_stop(arrays(stop_request("tensorrt_llm", "id")))


def arrays(request: Any) -> Inputs:
    """The tensors of a ModelInferRequest, each of the type and rank that the contract says."""
    known, found = {tensor.name: tensor for tensor in INPUTS}, {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        line = known[tensor.name]
        assert (tensor.datatype, len(tensor.shape)) == (line.dtype, 1 + len(line.dims)), tensor.name
        found[tensor.name] = np.frombuffer(raw, NUMPY_TYPES[line.dtype]).reshape(tensor.shape)
    assert {tensor.name for tensor in INPUTS if not tensor.optional} <= set(found)
    return found


def test_the_engine_and_the_scheduler_mean_the_same_ends() -> None:
    assert {str(end) for end in End} == {*map(str, EndReason), "stopped"}


def required(**more: Any) -> Inputs:
    inputs = {"input_ids": [[5, 6, 7]], "input_lengths": [[3]], "request_output_len": [[9]], **more}
    types = {tensor.name: NUMPY_TYPES[tensor.dtype] for tensor in INPUTS}
    return {name: np.array(value, types.get(name, np.int32)) for name, value in inputs.items()}


def test_a_call_is_read_from_the_required_tensors_alone() -> None:
    assert read_call(required()) == EngineCall(input_ids=(5, 6, 7), output_tokens_max=9)


def test_every_option_is_read() -> None:
    call = read_call(
        required(
            streaming=[[True]], end_id=[[2]], runtime_top_k=[[40]], runtime_top_p=[[0.5]], temperature=[[0.25]],
            seed=[[7]], min_tokens=[[3]], repetition_penalty=[[1.5]], presence_penalty=[[0.5]],
            frequency_penalty=[[0.25]], num_return_sequences=[[2]], return_perf_metrics=[[True]],
            stop_words_list=[[[8, 9, 10], [2, 3, -1]]], bad_words_list=[[[4], [1]]], exclude_input_in_output=[[True]],
            retention_token_range_starts=[[0, 4]], retention_token_range_ends=[[4, -1]],
            retention_token_range_priorities=[[90, 10]], retention_token_range_durations_ms=[[-1, 500]],
            retention_decode_priority=[[5]],
        )
    )  # fmt: skip
    assert (call.streaming, call.exclude_input, call.end_id, call.sequences) == (True, True, 2, 2)
    assert (call.sampling.top_k, call.sampling.top_p, call.sampling.temperature, call.sampling.seed) == (
        40,
        0.5,
        0.25,
        7,
    )
    assert (call.sampling.min_tokens, call.sampling.penalised) == (3, True)
    assert (call.stop_words, call.bad_words) == (((8, 9), (10,)), ((4,),))
    assert [call.retention.at(token, 8) for token in (0, 4, 8)] == [(90, np.inf), (10, 0.5), (5, np.inf)]
    assert call.returns == {"return_perf_metrics"}


@pytest.mark.parametrize(
    "tensor", [tensor for tensor in INPUTS if not tensor.supported], ids=lambda tensor: tensor.name
)
def test_what_the_engine_does_not_support_is_refused_by_name(tensor: TensorSpec) -> None:
    value: Any = b"json" if tensor.dtype == "STRING" else 1
    shape = (1, *(1 if size == -1 else size for size in tensor.dims))
    with pytest.raises(UnsupportedError, match=f"tensor '{tensor.name}'"):
        read_call({**required(), tensor.name: np.full(shape, value, NUMPY_TYPES[tensor.dtype])})


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"input_lengths": [[4]]}, "'input_lengths' is 4, but input_ids holds 3"),
        ({"input_lengths": [[3, 3]]}, "'input_lengths' must hold one value"),
        ({"request_output_len": [[0]]}, "'request_output_len' must be >= 1, not 0"),
        ({"beam_width": [[2]]}, "'beam_width'"),
        ({"num_return_sequences": [[0]]}, "'num_return_sequences'"),
        ({"stop_words_list": [[[8, 9], [2, 1]]]}, "'stop_words_list': the offsets"),
        ({"bad_words_list": [[[8, 9]]]}, "'bad_words_list' must have the shape"),
        ({"temperature": [[-1.0]]}, "sampling tensors"),
        ({"retention_token_range_starts": [[0]]}, "'retention_token_range_\\*' must have one length"),
        ({"retention_decode_priority": [[101]]}, "retention tensors"),
        ({"input_ids": [[1, 2, 3], [4, 5, 6]]}, "'input_ids' has batch size 2"),
        ({"unheard_of": [[1]]}, "'unheard_of' is not one"),
    ],
)
def test_a_wrong_tensor_is_named(wrong: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        read_call(required(**wrong))


def test_a_salt_comes_as_a_parameter_of_the_request() -> None:
    required = {name: np.array([[3]], np.int32) for name in ("input_ids", "input_lengths", "request_output_len")}
    required["input_lengths"] = np.array([[1]], np.int32)
    assert read_call(required, parameters='{"cache_salt": "team-a"}').cache_salt == "team-a"
    assert read_call(required, parameters='{"priority": 1}').cache_salt is None
    with pytest.raises(ValueError, match="parameter 'cache_salt' must be a text, not 7"):
        read_call(required, parameters='{"cache_salt": 7}')


def test_a_stop_is_told_from_a_call() -> None:
    assert (is_stop(required(stop=[[True]])), is_stop(required(stop=[[False]])), is_stop(required())) == (
        True,
        False,
        False,
    )


def test_a_streamed_response_holds_only_the_new_tokens() -> None:
    call = EngineCall(input_ids=(5, 6), output_tokens_max=9, streaming=True)
    outputs = outputs_of(call, OutputPart(ids=(7,), generated_tokens=3))
    assert {name: array.tolist() for name, array in outputs.items()} == {
        "output_ids": [[[7]]],
        "sequence_length": [[1]],
    }


def test_a_whole_response_repeats_the_prompt_unless_told_not_to() -> None:
    whole = EngineCall(input_ids=(5, 6), output_tokens_max=9)
    without = EngineCall(input_ids=(5, 6), output_tokens_max=9, exclude_input=True)
    part = OutputPart(ids=(7, 8), end=End.LENGTH, final=True, generated_tokens=2)
    assert outputs_of(whole, part)["output_ids"].tolist() == [[[5, 6, 7, 8]]]
    assert outputs_of(without, part)["output_ids"].tolist() == [[[7, 8]]]


def test_every_output_has_the_type_and_rank_of_the_contract() -> None:
    returns = frozenset({"return_perf_metrics", "return_num_input_tokens", "return_num_output_tokens"})
    call = EngineCall(input_ids=(5,), output_tokens_max=9, sequences=2, streaming=True, returns=returns)
    outputs = outputs_of(call, OutputPart(ids=(7,), end=End.END_ID, final=True, figures=Figures(reused_blocks=3)))
    known = {tensor.name: tensor for tensor in OUTPUTS}
    for name, array in outputs.items():
        assert (array.dtype, array.ndim) == (np.dtype(NUMPY_TYPES[known[name].dtype]), 1 + len(known[name].dims)), name
    assert set(outputs) == {tensor.name for tensor in OUTPUTS if tensor.supported}
    assert outputs["kv_cache_reused_blocks"].tolist() == [[3]]
