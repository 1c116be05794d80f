"""The real Triton loads a repository that `sidecar fill` wrote; the CPU engine stands in for the GPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
from tritonclient.grpc import aio as aio_client

from dev.triton import TritonSettings, running
from sidecar.cli.fill import ServingPlace, write_repository
from sidecar.cli.serving_profile import load_profile
from tests.integration.test_tritonclient import requests_of, text_inputs

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]
ROOT = Path(__file__).parents[2]


async def test_the_real_triton_serves_a_filled_repository(tmp_path: Path) -> None:
    tokenizer, repository = ROOT / "model_repository/tokenizer", tmp_path / "repository"
    place = ServingPlace(tokenizer_dir=str(tokenizer))
    write_repository(load_profile("llmapi", ROOT), place, ROOT, repository)
    (repository / "engine").rename(repository / "engine_python")
    (repository / "tokenizer").symlink_to(tokenizer)
    settings = TritonSettings(repository=repository, slots=4, parameters={"engine": "numpy", "preset": "tiny"})
    request = {"model_name": "ensemble", "inputs": text_inputs("the train to the coast", 6)}
    texts = []
    async with (
        running(tmp_path / "triton", settings) as server,
        aio_client.InferenceServerClient(server.target) as client,
    ):
        found = await client.get_model_config("preprocessing", as_json=True)
        async for result, error in client.stream_infer(requests_of(request)):
            assert error is None
            texts.append(result.as_numpy("text_output")[0].decode())
    assert found["config"]["instance_group"][0]["count"] == 4
    assert "".join(texts)
