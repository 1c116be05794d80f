"""`sidecar status` and `sidecar doctor` against the real Triton."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import yaml
from tritonclient.grpc import aio as grpc
from tritonclient.utils import InferenceServerException

from dev.load import text_inputs
from dev.server import SidecarProcess, serving
from dev.triton import Triton
from tests.integration.conftest import sidecar_settings

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


async def run(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_status_shows_the_slots_of_a_running_sidecar(sidecar: SidecarProcess) -> None:
    code, output = await run("status", "--http", sidecar.http)
    assert code == 0
    assert "serving" in output
    assert "[........] of 8 slots" in output


async def test_status_of_nothing_is_a_failure_in_one_line() -> None:
    code, output = await run("status", "--http", "127.0.0.1:1")
    assert code == 1
    assert output.startswith("sidecar: no sidecar answers on http://127.0.0.1:1")


async def test_the_doctor_finds_engine_models_and_gauges(triton: Triton, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(sidecar_settings(triton)))
    code, output = await run("doctor", "--config", str(file))
    assert code == 0, output
    verdicts = [line.split()[0] for line in output.splitlines()]
    assert verdicts == ["ok"] * 7


async def test_more_than_the_engine_has_fails_the_doctor(triton: Triton, tmp_path: Path) -> None:
    settings = sidecar_settings(triton)
    settings["engines"][0] |= {"slots": 16, "tokens_max": 4096}
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(settings))
    code, output = await run("doctor", "--config", str(file))
    assert code == 1
    assert "slots is 16, but the engine runs at most 8 sequences at a time (its config.pbtxt)" in output
    assert "tokens_max is 4096, but a sequence of this engine ends at 2048 tokens (its config.pbtxt)" in output


async def test_the_doctor_fails_where_no_engine_and_no_kafka_answers(triton: Triton, tmp_path: Path) -> None:
    settings = sidecar_settings(triton, offline={"bootstrap_servers": "127.0.0.1:1"})
    settings["engines"][0]["target"] = "127.0.0.1:1"
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(settings))
    code, output = await run("doctor", "--config", str(file))
    assert code == 1
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 2, output


async def test_a_misnamed_text_model_fails_the_doctor_and_callers_of_the_right_one_are_refused(
    triton: Triton, tmp_path: Path
) -> None:
    settings = sidecar_settings(triton)
    settings["engines"][0]["text_model"] = "ensemblee"
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(settings))
    code, output = await run("doctor", "--config", str(file))
    assert code == 1, output
    assert "Triton has no text model ensemblee; it has ensemble, " in output

    async with serving(tmp_path, settings) as server, grpc.InferenceServerClient(server.listen) as client:
        for model, code_name in (("ensemble", "FAILED_PRECONDITION"), ("ensemblee", "NOT_FOUND")):
            async with asyncio.timeout(30):
                while True:  # until the look at the models is done
                    try:
                        await client.infer(model, text_inputs("how far is the sea", 4))
                    except InferenceServerException as error:
                        if code_name in str(error.status()):
                            break
        lines = server.log.read_text().splitlines()
    assert "serving on" in lines[0]
    (told,) = [line for line in lines if "ERROR" in line]
    assert "Callers of ensemble, which would pass by the scheduler, are refused" in told


@pytest.mark.parametrize("port", ["http", "metrics"])
async def test_a_wrong_port_is_named_with_what_is_expected_there(triton: Triton, tmp_path: Path, port: str) -> None:
    settings = sidecar_settings(triton)
    url = triton.metrics_url if port == "metrics" else triton.http_url
    settings["engines"][0]["target"] = url.removeprefix("http://").split("/")[0]
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(settings))
    code, output = await run("doctor", "--config", str(file))
    assert code == 1
    assert "what listens there speaks no gRPC" in output


async def test_a_block_size_that_is_not_the_engines_fails_the_doctor(triton: Triton, tmp_path: Path) -> None:
    settings = sidecar_settings(triton)
    settings["engines"][0]["kv_block_tokens"] = 16
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(settings))
    code, output = await run("doctor", "--config", str(file))
    assert code == 1
    assert "kv_block_tokens is 16 in the settings, but a block of this engine's KV cache holds 32 tokens" in output


async def test_a_model_that_is_not_there_is_named_with_the_setting(triton: Triton, tmp_path: Path) -> None:
    settings = sidecar_settings(triton)
    settings["engines"][0]["model"] = "tensorrt"
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(settings))
    code, output = await run("doctor", "--config", str(file))
    assert code == 1
    assert "engines[].model names a model that this Triton does not have" in output
