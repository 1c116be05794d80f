"""Unmodified tritonclient programs, sync and aio, through the sidecar to the real Triton."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient import grpc as sync_client
from tritonclient.grpc import aio as aio_client
from tritonclient.utils import InferenceServerException

from dev.server import SidecarProcess
from dev.triton import Triton
from tests.integration.conftest import status_when

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]
END_OF_PROMPT = 1
LONG = 1500  # tokens: fifteen seconds of the paced engine, so that whatever ends sooner was ended


def tensor(name: str, values: Sequence[Any], datatype: str) -> Any:
    dtypes: dict[str, Any] = {"INT32": np.int32, "BOOL": np.bool_, "BYTES": np.object_}
    found = sync_client.InferInput(name, [1, len(values)], datatype)
    found.set_data_from_numpy(np.array([values], dtype=dtypes[datatype]))
    return found


def text_inputs(text: str, max_tokens: int, *, stream: bool = True, min_tokens: int = 0) -> list[Any]:
    inputs = [
        tensor("text_input", [text.encode()], "BYTES"),
        tensor("max_tokens", [max_tokens], "INT32"),
        tensor("stream", [stream], "BOOL"),
    ]
    return inputs + ([tensor("min_tokens", [min_tokens], "INT32")] if min_tokens else [])


def ids_inputs(ids: Sequence[int], output_len: int, *, streaming: bool = True, min_tokens: int = 0) -> list[Any]:
    inputs = [
        tensor("input_ids", ids, "INT32"),
        tensor("input_lengths", [len(ids)], "INT32"),
        tensor("request_output_len", [output_len], "INT32"),
        tensor("streaming", [streaming], "BOOL"),
    ]
    return inputs + ([tensor("min_tokens", [min_tokens], "INT32")] if min_tokens else [])


async def requests_of(*requests: dict[str, Any], until: asyncio.Event | None = None) -> AsyncIterator[dict[str, Any]]:
    for request in requests:
        yield request
    if until is not None:
        await until.wait()


async def idle(sidecar: SidecarProcess) -> dict[str, Any]:
    """The status once nothing is in flight any more."""
    return await status_when(sidecar, lambda status: status["in_flight"] == 0, timeout_s=10)


async def test_the_aio_client_streams_text_token_by_token(sidecar: SidecarProcess) -> None:
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        request = {"model_name": "ensemble", "inputs": text_inputs("the train to the coast", 12), "request_id": "t1"}
        texts = []
        async for result, error in client.stream_infer(requests_of(request)):
            assert error is None
            assert result.get_response().id == "t1"
            texts.append(result.as_numpy("text_output")[0].decode())
    assert len(texts) > 3
    assert "".join(texts).split()


async def test_nvidias_end_to_end_client_reads_a_text_and_its_figures(sidecar: SidecarProcess, triton: Triton) -> None:
    """As end_to_end_grpc_client.py of tensorrtllm_backend does: the text is `output[0]`, each figure `[0][0]`."""
    inputs = [*text_inputs("the train to the coast", 6, stream=False), tensor("return_perf_metrics", [True], "BOOL")]
    figures = ("kv_cache_reused_blocks", "last_token_time_ns", "acceptance_rate", "total_draft_tokens")
    outputs = [sync_client.InferRequestedOutput(name) for name in ("text_output", *figures)]
    request = {"model_name": "ensemble", "inputs": inputs, "outputs": outputs}
    for address, headers in ((triton.target, None), (sidecar.listen, None), (sidecar.listen, {"x-lane": "offline"})):
        async with aio_client.InferenceServerClient(address) as client:
            async for result, error in client.stream_infer(requests_of(request), headers=headers):
                assert error is None
                assert isinstance(result.as_numpy("text_output")[0].decode("utf-8"), str)
                assert [len(result.as_numpy(name)[0]) for name in figures] == [1, 1, 1, 1]


async def test_a_text_has_the_same_shape_in_both_lanes(sidecar: SidecarProcess) -> None:
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        inputs = text_inputs("the train to the coast", 6, stream=False)
        online = await client.infer("ensemble", inputs)
        offline = await client.infer("ensemble", inputs, headers={"x-lane": "offline"})
    assert online.as_numpy("text_output").shape == offline.as_numpy("text_output").shape == (1,)


async def test_the_sync_client_streams_ids_token_by_token(sidecar: SidecarProcess) -> None:
    def stream() -> list[tuple[str, list[int], bool]]:
        answers: queue.Queue[Any] = queue.Queue()
        found = []
        with sync_client.InferenceServerClient(sidecar.listen) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            client.async_stream_infer("tensorrt_llm", ids_inputs([5, 6, END_OF_PROMPT], 8), request_id="s1")
            final = False
            while not final:
                result, error = answers.get(timeout=20)
                assert error is None
                response = result.get_response()
                final = response.parameters["triton_final_response"].bool_param
                found.append((response.id, result.as_numpy("output_ids").ravel().tolist(), final))
            client.stop_stream()
        return found

    answers = await asyncio.to_thread(stream)
    assert {request_id for request_id, _, _ in answers} == {"s1"}
    assert 1 <= sum(len(ids) for _, ids, _ in answers) <= 8
    assert [final for _, _, final in answers] == [False] * (len(answers) - 1) + [True]


async def test_ids_through_the_sidecar_are_those_of_the_engine_itself(sidecar: SidecarProcess, triton: Triton) -> None:
    async def generated(address: str) -> list[int]:
        request = {"model_name": "tensorrt_llm", "inputs": ids_inputs([7, 8, 9, END_OF_PROMPT], 16)}
        async with aio_client.InferenceServerClient(address) as client:
            return [
                token
                async for result, _ in client.stream_infer(requests_of(request))
                for token in result.as_numpy("output_ids").ravel().tolist()
            ]

    assert await generated(sidecar.listen) == await generated(triton.target)


async def test_unary_infer_works_although_the_models_are_decoupled(sidecar: SidecarProcess) -> None:
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        whole = await client.infer("ensemble", text_inputs("hello there", 10, stream=False))
        joined = await client.infer("ensemble", text_inputs("hello there", 10, stream=True))
    assert whole.as_numpy("text_output").ravel()[0] == joined.as_numpy("text_output").ravel()[0] != b""


async def test_the_offline_lane_answers_with_the_same_text_in_one_piece(sidecar: SidecarProcess) -> None:
    inputs = text_inputs("the train to the coast", 24, stream=False)
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        online = await client.infer("ensemble", inputs)
        offline = await client.infer("ensemble", inputs, headers={"x-lane": "offline"})
    text = offline.as_numpy("text_output").ravel()[0].decode()
    assert text.strip() == online.as_numpy("text_output").ravel()[0].decode().strip() != ""


async def test_one_bad_request_of_a_stream_leaves_its_neighbour_alone(sidecar: SidecarProcess) -> None:
    bad = {"model_name": "tensorrt_llm", "inputs": ids_inputs([5, END_OF_PROMPT], 4)[:2], "request_id": "bad"}
    good = {"model_name": "tensorrt_llm", "inputs": ids_inputs([5, END_OF_PROMPT], 4), "request_id": "good"}
    errors, answered = [], set()
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        async for result, error in client.stream_infer(requests_of(good, bad)):
            if error is None:
                answered.add(result.get_response().id)
            else:
                errors.append(str(error))
    assert answered == {"good"}
    assert len(errors) == 1
    assert "request_output_len" in errors[0]


async def test_cancelling_frees_the_engines_slot_long_before_the_output_would_have_ended(
    sidecar: SidecarProcess,
) -> None:
    request = {"model_name": "ensemble", "inputs": text_inputs("<|offline|>go on", LONG, min_tokens=LONG)}
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        responses = client.stream_infer(requests_of(request))
        async for _, error in responses:
            assert error is None
            responses.cancel()
            break
    assert (await idle(sidecar))["engines"]["e0"]["slots_draining"] == 0


async def test_the_callers_deadline_frees_the_engines_slot(sidecar: SidecarProcess) -> None:
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        inputs = ids_inputs([5, END_OF_PROMPT], LONG, min_tokens=LONG)
        with pytest.raises(InferenceServerException, match="Deadline"):
            await client.infer("tensorrt_llm", inputs, client_timeout=0.5)
    await idle(sidecar)


async def test_a_wrong_datatype_is_an_invalid_argument_that_names_the_tensor(sidecar: SidecarProcess) -> None:
    inputs = [*ids_inputs([5, END_OF_PROMPT], 4)[:2], tensor("request_output_len", [True], "BOOL")]
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        with pytest.raises(InferenceServerException, match="request_output_len") as raised:
            await client.infer("tensorrt_llm", inputs)
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"


async def test_a_text_too_long_for_the_model_is_refused_with_both_numbers(sidecar: SidecarProcess) -> None:
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        with pytest.raises(InferenceServerException, match=r"prompt \(\d+ tokens\) and max_tokens \(2040\)") as raised:
            await client.infer("ensemble", text_inputs("one two three four five six seven eight nine", 2040))
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"


async def test_an_unknown_model_is_not_found(sidecar: SidecarProcess) -> None:
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        with pytest.raises(InferenceServerException, match="unknown model") as raised:
            await client.infer("no-such-model", ids_inputs([5, END_OF_PROMPT], 4))
    assert raised.value.status() == "StatusCode.NOT_FOUND"


async def test_a_model_that_is_not_scheduled_passes_through(sidecar: SidecarProcess) -> None:
    inputs = [tensor("QUERY", [b"hello there"], "BYTES"), tensor("REQUEST_OUTPUT_LEN", [5], "INT32")]
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        result = await client.infer("preprocessing", inputs)
    assert result.as_numpy("INPUT_ID").size > 1


async def test_the_other_methods_answer_as_triton_does(sidecar: SidecarProcess, triton: Triton) -> None:
    async with (
        aio_client.InferenceServerClient(sidecar.listen) as through,
        aio_client.InferenceServerClient(triton.target) as direct,
    ):
        assert await through.is_server_live()
        assert await through.is_server_ready()
        assert await through.is_model_ready("ensemble")
        methods: dict[str, tuple[str, ...]] = {
            "get_server_metadata": (),
            "get_model_metadata": ("tensorrt_llm",),
            "get_model_config": ("ensemble",),
            "get_model_repository_index": (),
            "get_system_shared_memory_status": (),
            "get_cuda_shared_memory_status": (),
            "get_trace_settings": (),
            "get_log_settings": (),
        }
        for name, arguments in methods.items():
            assert await getattr(through, name)(*arguments) == await getattr(direct, name)(*arguments)
        statistics = await through.get_inference_statistics("tensorrt_llm")
        assert statistics.model_stats[0].name == "tensorrt_llm"
        with pytest.raises(InferenceServerException) as refused:
            await direct.unload_model("tensorrt_llm")
        with pytest.raises(InferenceServerException) as refused_too:
            await through.unload_model("tensorrt_llm")
        assert str(refused_too.value) == str(refused.value)


async def test_the_standard_health_check_says_serving(sidecar: SidecarProcess) -> None:
    async with grpc.aio.insecure_channel(sidecar.listen) as channel:
        stub: Any = health_pb2_grpc.HealthStub  # untyped
        answer = await stub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_callers_stop_request_ends_its_own_stream_early(sidecar: SidecarProcess) -> None:
    started = asyncio.Event()

    async def requests() -> AsyncIterator[dict[str, Any]]:
        inputs = ids_inputs([5, END_OF_PROMPT], LONG, min_tokens=LONG)
        yield {"model_name": "tensorrt_llm", "inputs": inputs, "request_id": "mine"}
        await started.wait()
        stop = [*ids_inputs([0], 1)[:3], tensor("stop", [True], "BOOL")]
        yield {"model_name": "tensorrt_llm", "inputs": stop, "request_id": "mine"}

    received = 0
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            received += result.as_numpy("output_ids").size if result.as_numpy("output_ids") is not None else 0
            started.set()
    assert 0 < received < LONG
