"""A real Triton that asks for keys: the sidecar has its own, callers bring theirs, and nobody gets another's."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
import yaml
from tritonclient.grpc import aio as aio_client
from tritonclient.grpc import service_pb2

from dev.server import SidecarProcess, serving
from dev.triton import Triton, TritonSettings, running
from sidecar.triton import wire
from sidecar.triton.client import SERVICE, token_request
from tests.integration.conftest import PARAMETERS, SLOTS, sidecar_settings
from tests.integration.test_tritonclient import ids_inputs

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
ADMIN, USER = "triton-grpc-protocol-admin-key", "triton-grpc-protocol-user-key"
KEY = "only-4-us"
RESTRICTED = f"This protocol is restricted, expecting header '{USER}'"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def restricted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Triton]:
    """Administration with one key, inference with another."""
    settings = TritonSettings(
        slots=SLOTS,
        parameters=PARAMETERS,
        restricted=(f"model-config,model-repository:admin-key={KEY}", "inference:user-key=hello"),
    )
    async with running(Path(tmp_path_factory.mktemp("triton")), settings) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(restricted: Triton, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SidecarProcess]:
    """A sidecar with both keys, one written in the settings and one in a file."""
    directory = Path(tmp_path_factory.mktemp("sidecar"))
    (directory / "admin").write_text(f"{KEY}\n")
    settings = sidecar_settings(restricted, scheduler={"retry_backoff_s": 0.01})
    settings["engines"][0] |= {"metadata": {USER: "hello"}, "metadata_files": {ADMIN: str(directory / "admin")}}
    async with serving(directory, settings) as server:
        yield server
        await server.drain()
        assert KEY not in server.log.read_text()


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details() or ""


def infer(channel: grpc.aio.Channel, *metadata: tuple[str, str], output: int = 4) -> Any:
    ask: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer", response_deserializer=wire.InferResponse.FromString)
    return ask(token_request("tensorrt_llm", (5, 6, 7), output, "mine").SerializeToString(), metadata=metadata)


async def test_a_caller_with_the_key_is_served_in_both_lanes(guarded: SidecarProcess) -> None:
    async with grpc.aio.insecure_channel(guarded.listen) as channel:
        for lane in ("online", "offline"):
            answer = await infer(channel, (USER, "hello"), ("x-lane", lane))
            assert answer.id == "mine"
            assert len(wire.output_values(answer, "output_ids") or ()) >= 1


@pytest.mark.parametrize("lane", ["online", "offline"])
async def test_a_caller_without_the_key_hears_what_triton_says_and_gains_nothing(
    guarded: SidecarProcess, lane: str
) -> None:
    async with grpc.aio.insecure_channel(guarded.listen) as channel:
        for keys in ((), ((USER, "guessed"),), ((ADMIN, KEY),)):
            code, details = await refusal(infer(channel, *keys, ("x-lane", lane)))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert RESTRICTED in details or "ended the stream before" in details  # gRPC loses a status now and then
        assert (await infer(channel, (USER, "hello"))).id == "mine"  # the engine is up all the while


async def test_the_sidecars_own_key_checks_requests_and_passes_no_call(guarded: SidecarProcess) -> None:
    async with grpc.aio.insecure_channel(guarded.listen) as channel:
        request = token_request("tensorrt_llm", (5,), 4, "mine")
        wire.add_tensor(request, "temprature", "FP32", (0.5,), (1, 1))
        ask: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        code, details = await refusal(ask(request.SerializeToString(), metadata=((USER, "hello"),)))
        assert (code, "'temprature' for model 'tensorrt_llm'" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        config: Any = channel.unary_unary(f"/{SERVICE}/ModelConfig")
        message = service_pb2.ModelConfigRequest(name="tensorrt_llm").SerializeToString()
        assert (await refusal(config(message)))[0] is grpc.StatusCode.UNAVAILABLE
        assert await config(message, metadata=((ADMIN, KEY),))


async def test_a_caller_who_goes_away_is_stopped_with_the_sidecars_key(guarded: SidecarProcess) -> None:
    async with grpc.aio.insecure_channel(guarded.listen) as channel:
        call = infer(channel, (USER, "hello"), output=1500)
        while not (await guarded.status())["in_flight"]:
            pass
        call.cancel()
        while (await guarded.status())["in_flight"]:
            pass
        assert (await guarded.status())["state"] == "serving"


async def test_without_a_key_for_model_config_requests_go_on_unchecked(restricted: Triton, tmp_path: Path) -> None:
    settings = sidecar_settings(restricted)
    settings["engines"][0]["metadata"] = {USER: "hello"}
    async with serving(tmp_path, settings) as server:
        async with aio_client.InferenceServerClient(server.listen) as client:
            result = await client.infer(
                "tensorrt_llm", ids_inputs([5, 6, 7], 4, streaming=False), headers={USER: "hello"}
            )
            assert result.as_numpy("output_ids").size >= 4
        await server.drain()
        assert "no ModelConfig (This protocol is restricted" in server.log.read_text()


async def test_with_the_wrong_key_doctor_says_why_the_engine_does_not_answer(
    restricted: Triton, tmp_path: Path
) -> None:
    settings = sidecar_settings(restricted)
    settings["engines"][0]["metadata"] = {USER: "wrong-4-us"}
    config = tmp_path / "sidecar.yaml"
    config.write_text(yaml.safe_dump(settings))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "doctor", "--config", str(config)), stdout=PIPE, stderr=STDOUT
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 1
    assert f"model tensorrt_llm: {RESTRICTED}" in output
    assert "wrong-4-us" not in output
