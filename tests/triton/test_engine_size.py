"""What an engine says of its size, whoever says it, is held against the settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from sidecar.core.events import Measured
from sidecar.settings.file import EngineEndpoint
from sidecar.triton.client import EngineClient
from sidecar.triton.engine_size import (
    EngineSize,
    kv_sequences,
    look_at_size,
    of_engine_file,
    of_gauges,
    of_model_config,
    size_faults,
    size_warnings,
)
from sidecar.triton.gauges import EngineScrape
from tests.fakes.triton import FakeTriton

ENGINE = EngineEndpoint(name="e0", slots=8, tokens_max=2048)
REPOSITORY = Path(__file__).parents[2] / "model_repository"
BUILT: dict[str, Any] = {  # what trtllm-build writes, shortened
    "version": "1.2.1",
    "pretrained_config": {"mapping": {"tp_size": 4}},
    "build_config": {
        "max_input_len": 16_383,
        "max_seq_len": 16_384,
        "max_batch_size": 64,
        "max_num_tokens": 2048,
        "plugin_config": {"use_paged_context_fmha": True, "tokens_per_block": 32},
    },
}


def written(directory: Path, **build: Any) -> Path:
    """The config.json of an engine that was built so."""
    file = directory / "config.json"
    file.write_text(json.dumps({**BUILT, "build_config": {**BUILT["build_config"], **build}}))
    return file


def test_a_fresh_engines_gauges_say_nothing_and_later_they_do() -> None:
    fresh = EngineScrape(measured=Measured(engine="e0", ok=True, kv_blocks_max=0, tokens_per_block=0), sequences_max=0)
    assert of_gauges(fresh) == EngineSize(source='its gauge request_type="max"')
    measured = Measured(engine="e0", ok=True, kv_blocks_max=2560, tokens_per_block=32)
    found = of_gauges(EngineScrape(measured=measured, sequences_max=64))
    assert (found.sequences_max, found.kv_tokens) == (64, 81_920)


def test_our_config_tells_its_sizes_and_an_unfilled_one_does_not() -> None:
    config = model_config_pb2.ModelConfig()
    text_format.Parse((REPOSITORY / "engine_python/tensorrt_llm/config.pbtxt").read_text(), config)
    found = of_model_config(config)
    assert (found.sequences_max, found.tokens_max, found.prompt_tokens_max, found.kv_tokens) == (8, 2048, None, 81_920)
    config.parameters["max_seq_len"].string_value = "${max_seq_len}"
    config.parameters["max_tokens_in_paged_kv_cache"].string_value = "9" * 5000
    assert (of_model_config(config).tokens_max, of_model_config(config).kv_tokens) == (None, None)


def test_the_engines_own_file_tells_how_it_was_built(tmp_path: Path) -> None:
    file = written(tmp_path)
    assert of_engine_file(file) == EngineSize(
        source=str(file), sequences_max=64, tokens_max=16_384, prompt_tokens_max=16_383, reuses=True
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"build_config": 7}', '{"build_config": []}', "[" * 100_000, "\xff"])
def test_a_file_that_is_none_of_an_engine_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert of_engine_file(tmp_path / "config.json") is None
    assert of_engine_file(tmp_path / "missing.json") is None


@pytest.mark.parametrize("source", ["its gauge", "its config.pbtxt", "/engines/config.json"])
def test_more_slots_than_the_engine_has_are_refused_with_both_numbers_and_the_source(source: str) -> None:
    size = EngineSize(source=source, sequences_max=8)
    assert size_faults(ENGINE, [size]) == []
    (fault,) = size_faults(replace(ENGINE, slots=16), [size])
    assert fault.startswith(f"slots is 16, but the engine runs at most 8 sequences at a time ({source})")


def test_a_longer_sequence_than_the_engine_has_is_refused() -> None:
    (fault,) = size_faults(replace(ENGINE, tokens_max=16_384), [EngineSize(source="its config.pbtxt", tokens_max=2048)])
    assert fault.startswith("tokens_max is 16384, but a sequence of this engine ends at 2048 tokens (its config.pbtxt)")


def test_prompts_that_a_resume_would_exceed_are_refused(tmp_path: Path) -> None:
    built = of_engine_file(written(tmp_path, max_input_len=1024))  # trtllm-build's default
    assert built is not None
    (fault,) = size_faults(ENGINE, [built])
    assert "prompts have at most 1024 tokens" in fault
    assert "build it with max_input_len 2047, or set tokens_max to 1025" in fault
    assert size_faults(replace(ENGINE, tokens_max=1025), [built]) == []


def test_far_fewer_slots_than_the_engine_has_are_a_warning() -> None:
    size = EngineSize(source="its gauge", sequences_max=64)
    (warning,) = size_warnings(ENGINE, [size])
    assert warning.startswith("slots is 8 of the 64 sequences")
    assert size_warnings(replace(ENGINE, slots=56), [size]) == []
    assert size_warnings(ENGINE, [EngineSize(source="its gauge")]) == []


def test_an_engine_that_cannot_reuse_blocks_is_a_warning(tmp_path: Path) -> None:
    built = of_engine_file(written(tmp_path, max_batch_size=8, plugin_config={"use_paged_context_fmha": False}))
    assert built is not None
    (warning,) = size_warnings(ENGINE, [built])
    assert "without use_paged_context_fmha" in warning


def test_the_first_source_that_knows_the_cache_tells_how_many_sequences_fit() -> None:
    gauges = EngineSize(source="its gauge", kv_tokens=499_277)
    config = EngineSize(source="its config.pbtxt", kv_tokens=81_920)
    long = replace(ENGINE, tokens_max=16_384)
    assert kv_sequences(long, [gauges, config]) == (499_277, 30)
    assert kv_sequences(long, [EngineSize(source="its gauge"), config]) == (81_920, 5)
    assert kv_sequences(replace(long, kv_tokens=32_768), [gauges]) == (32_768, 2)
    assert kv_sequences(long, []) is None


async def test_triton_is_asked_for_the_config_and_the_file_beside_it_is_read(
    triton: FakeTriton, tmp_path: Path
) -> None:
    file = written(tmp_path)
    async with EngineClient(triton.target) as client:
        assert await look_at_size(client, "tensorrt_llm") == (EngineSize(source="its config.pbtxt", sequences_max=8),)
        triton.parameters["gpt_model_path"] = str(tmp_path)
        both = await look_at_size(client, "tensorrt_llm")
        assert [each.source for each in both] == ["its config.pbtxt", str(file)]
        triton.parameters["gpt_model_path"] = "/no/such/place"
        assert len(await look_at_size(client, "tensorrt_llm")) == 1
        assert await look_at_size(client, "missing") == ()
