"""Requests that say more than most do: stops, shared memory, parameters. Direct to the real Triton and through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient import grpc as sync_client
from tritonclient.grpc import aio as aio_client
from tritonclient.utils import shared_memory

from dev.server import SidecarProcess
from dev.triton import Triton
from sidecar.triton import wire
from sidecar.triton.client import SERVICE, stop_request, token_request

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]
LONG = 1500  # tokens: fifteen seconds of the paced engine, so that whatever ends sooner was ended


def long_request(request_id: str) -> Any:
    request = token_request("tensorrt_llm", (5, 6, 1), LONG, request_id)
    wire.add_tensor(request, "streaming", "BOOL", (True,), (1, 1))
    wire.add_tensor(request, "min_tokens", "INT32", (LONG,), (1, 1))
    return request


@asynccontextmanager
async def stream_to(address: str, **options: Any) -> AsyncIterator[Any]:
    """A ModelStreamInfer call on a connection of its own."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=wire.InferRequest.SerializeToString,
            response_deserializer=wire.StreamResponse.FromString,
        )(**options)


async def rest(call: Any) -> list[Any]:
    await call.done_writing()
    found = []
    while (response := await call.read()) is not grpc.aio.EOF:
        found.append(response)
    return found


def about(response: Any) -> tuple[str, str, str, bool, str]:
    infer = response.infer_response
    return infer.id, infer.model_name, infer.model_version, wire.is_final(infer), response.error_message


async def answers(address: str, *requests: Any, **options: Any) -> list[tuple[str, str, str, bool, str]]:
    async with stream_to(address, **options) as call:
        for request in requests:
            await call.write(request)
        return [about(each) for each in await rest(call)]


async def test_a_stop_of_an_unknown_id_and_a_malformed_one_are_answered_as_direct(
    sidecar: SidecarProcess, triton: Triton
) -> None:
    malformed = stop_request("tensorrt_llm", "x")
    malformed.raw_input_contents[-1] = b"\1\1"
    without = wire.InferRequest(model_name="tensorrt_llm", id="x")
    wire.add_tensor(without, "stop", "BOOL", (True,), (1, 1))
    for request in (stop_request("tensorrt_llm", "nobody"), malformed, without):
        direct = await answers(triton.target, request)
        assert len(direct) == 1
        assert await answers(sidecar.listen, request) == direct


async def test_a_stop_from_another_connection_ends_the_request_early(sidecar: SidecarProcess) -> None:
    async with stream_to(sidecar.listen, timeout=10) as call, stream_to(sidecar.listen) as other:
        await call.write(long_request("elsewhere"))
        await call.read()
        await other.write(stop_request("tensorrt_llm", "elsewhere"))
        assert [about(each) for each in await rest(other)] == [("elsewhere", "tensorrt_llm", "1", True, "")]
        responses = await rest(call)
    assert about(responses[-1]) == ("elsewhere", "tensorrt_llm", "1", True, "")
    assert len(responses) < LONG - 10


@pytest.mark.parametrize("request_id", ["mine", ""])
async def test_errors_hold_the_callers_id_as_direct(sidecar: SidecarProcess, triton: Triton, request_id: str) -> None:
    lacking = wire.InferRequest(model_name="tensorrt_llm", id=request_id)
    wire.add_tensor(lacking, "input_ids", "INT32", (5, 1), (1, 2))
    batch = token_request("tensorrt_llm", (5, 1), 3, request_id)
    batch.inputs[0].shape[0] = 2
    batch.inputs[0].shape[1] = 1
    typed = wire.InferRequest(model_name="tensorrt_llm", id=request_id)
    for name, values in (("input_ids", range(200)), ("input_lengths", (2,)), ("request_output_len", (3,))):
        typed.inputs.add(name=name, datatype="INT32", shape=(1, 1)).contents.int_contents.extend(values)
    version = token_request("tensorrt_llm", (5, 1), 3, request_id)
    version.model_version = "7"
    region = token_request("tensorrt_llm", (5, 1), 3, request_id)
    region.inputs[0].parameters["shared_memory_region"].string_param = "nowhere"
    region.inputs[0].parameters["shared_memory_byte_size"].int64_param = 8
    del region.raw_input_contents[0]
    for request in (lacking, batch, typed, version, region):
        direct = await answers(triton.target, request)
        assert len(direct) == 1
        assert direct[0][4] != ""
        assert await answers(sidecar.listen, request) == direct


def tensor(name: str, values: Sequence[Any], datatype: str) -> Any:
    dtypes: dict[str, Any] = {"INT32": np.int32, "BOOL": np.bool_, "BYTES": np.object_}
    found = sync_client.InferInput(name, [1, len(values)], datatype)
    found.set_data_from_numpy(np.array([values], dtype=dtypes[datatype]))
    return found


async def test_a_prompt_and_its_length_in_shared_memory_are_generated_from(sidecar: SidecarProcess) -> None:
    ids, length = np.array([[5, 6, 1]], np.int32), np.array([[6]], np.int32)
    region = shared_memory.create_shared_memory_region("prompt", "/sidecar_test_prompt", ids.nbytes + length.nbytes)
    try:
        shared_memory.set_shared_memory_region(region, [ids, length])
        shared = sync_client.InferInput("input_ids", [1, 3], "INT32")
        shared.set_shared_memory("prompt", ids.nbytes)
        output_len = sync_client.InferInput("request_output_len", [1, 1], "INT32")
        output_len.set_shared_memory("prompt", length.nbytes, offset=ids.nbytes)
        async with aio_client.InferenceServerClient(sidecar.listen) as client:
            await client.register_system_shared_memory("prompt", "/sidecar_test_prompt", ids.nbytes + length.nbytes)
            inputs = [shared, tensor("input_lengths", [3], "INT32"), output_len]
            whole = await client.infer("tensorrt_llm", inputs)
            offline = await client.infer("tensorrt_llm", inputs, headers={"x-lane": "offline"})
            plain = await client.infer(
                "tensorrt_llm",
                [
                    tensor("input_ids", [5, 6, 1], "INT32"),
                    tensor("input_lengths", [3], "INT32"),
                    tensor("request_output_len", [6], "INT32"),
                ],
            )
            await client.unregister_system_shared_memory("prompt")
    finally:
        shared_memory.destroy_shared_memory_region(region)
    expected = plain.as_numpy("output_ids").tolist()
    assert len(expected[0][0]) > 0
    assert [each.as_numpy("output_ids").tolist() for each in (whole, offline)] == [expected, expected]


@pytest.mark.parametrize("model", ["tensorrt_llm", "ensemble"])
async def test_an_offline_call_gives_the_names_shapes_and_version_of_the_direct_one(
    sidecar: SidecarProcess, triton: Triton, model: str
) -> None:
    if model == "ensemble":
        inputs = [tensor("text_input", [b"the train to the coast"], "BYTES"), tensor("max_tokens", [40], "INT32")]
    else:
        inputs = [
            tensor("input_ids", [5, 6, 1], "INT32"),
            tensor("input_lengths", [3], "INT32"),
            tensor("request_output_len", [40], "INT32"),
        ]

    async def answer(address: str, headers: dict[str, str] | None) -> Any:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model, "inputs": inputs, "request_id": "r"}

        async with aio_client.InferenceServerClient(address) as client:
            (found,) = [each async for each, _ in client.stream_infer(requests(), headers=headers)]
        return found

    direct = await answer(triton.target, None)
    offline = await answer(sidecar.listen, {"x-lane": "offline"})
    one, other = direct.get_response(), offline.get_response()
    assert (other.model_name, other.model_version, other.id) == (one.model_name, one.model_version, one.id)
    assert {each.name: (each.datatype, list(each.shape)) for each in other.outputs} == {
        each.name: (each.datatype, list(each.shape)) for each in one.outputs
    }
    for each in one.outputs:
        assert offline.as_numpy(each.name).tolist() == direct.as_numpy(each.name).tolist()


async def test_a_timeout_bounds_the_wait_for_a_slot_and_says_so_in_tritons_words(sidecar: SidecarProcess) -> None:
    async with asyncio.timeout(20), stream_to(sidecar.listen) as call:
        for number in range(8):
            await call.write(long_request(f"r{number}"))
        waits = long_request("waits")
        waits.parameters["timeout"].int64_param = 100_000
        await call.write(waits)
        while not (response := await call.read()).error_message:
            pass
        call.cancel()
    assert response.infer_response.id == "waits"
    assert response.error_message.startswith("[request id: waits] Request timeout expired")
