"""The commands that build an engine are the ones written down, and what cannot be built is refused with its numbers.

After a change that is meant: python -m tests.cli.test_engine_build writes the scripts in tests/goldens/build_engine.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar.cli.engine_build import (
    IMAGE,
    CheckpointShape,
    as_script,
    build_commands,
    checkpoint_shape,
    draft_tokens,
    in_docker,
    memory_plan,
    refusals,
)
from sidecar.cli.serving_profile import ServingProfile, load_profile
from sidecar.core.errors import SettingsError
from sidecar.plan.capacity import MODELS, ModelSize
from tests.cli.test_serving_profile import ROOT

GOLDENS = ROOT / "tests/goldens/build_engine"
LLAMA_70B = CheckpointShape(
    model_type="llama",
    heads=64,
    positions=131_072,
    size=ModelSize(name="70b", parameters=70_552_387_584, layers=80, kv_heads=8, head_dim=128),
)
LLAMA_8B = CheckpointShape(model_type="llama", heads=32, positions=131_072, size=MODELS["8b"])
CONFIG_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
}


def profile(name: str, **changes: Any) -> ServingProfile:
    return replace(load_profile(name, ROOT), **changes)


CASES: dict[str, tuple[ServingProfile, CheckpointShape, str | None]] = {
    "70b-tp8": (profile("70b-tp8"), LLAMA_70B, None),
    "70b-tp4x2": (profile("70b-tp4x2"), LLAMA_70B, None),
    "70b-awq-tp2": (profile("70b-awq-tp2"), LLAMA_70B, "/calib"),
    "8b-tp1": (profile("8b-tp1"), LLAMA_8B, None),
    "8b-tp1-lookahead": (profile("8b-tp1-lookahead"), LLAMA_8B, None),
    "70b-int8-tp2": (profile("70b-tp8", tensor_parallel_size=2, quantization="int8_wo"), LLAMA_70B, None),
    "70b-smoothquant-tp4": (profile("70b-tp4x2", quantization="int8_sq"), LLAMA_70B, "/calib"),
}


def script(name: str) -> str:
    """What `build-engine --dry-run` prints for a case."""
    wanted, shape, calibration = CASES[name]
    assert list(refusals(wanted, shape)) == []
    mounts = {"/srv/checkpoint": "/model:ro", "/srv/built": "/out"}
    if calibration:
        mounts["/srv/cnn_dailymail"] = f"{calibration}:ro"
    commands = build_commands(wanted, shape, model="/model", out="/out", calibration=calibration)
    return as_script(name, memory_plan(wanted, shape), [in_docker(each, IMAGE, mounts) for each in commands])


@pytest.mark.parametrize("name", CASES)
def test_the_commands_are_the_ones_written_down(name: str) -> None:
    assert script(name) == (GOLDENS / f"{name}.sh").read_text()


def test_every_script_that_is_written_down_is_a_case() -> None:
    assert {each.stem for each in GOLDENS.iterdir()} == CASES.keys()


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("70b-tp8", {"quantization": "fp8"}, "fp8 needs SM 89, and a100-80gb is SM 80: use int4_awq or int8_wo"),
        ("70b-tp8", {"quantization": "nvfp4"}, "nvfp4 needs SM 100"),
        ("70b-tp8", {"quantization": "w4a8_awq"}, "w4a8_awq needs SM 89"),
        (
            "70b-tp8",
            {"tensor_parallel_size": 2},
            "70.6e9 parameters over 2 GPUs are 65.7 GiB each; (79.2 - 65.7 - 4.0) x 0.9 = 8.5 GiB of KV cache hold"
            " 55,991 tokens, 3 sequences of 16,384; at least 4 are needed",
        ),
        ("70b-tp8", {"tensor_parallel_size": 1}, "0.0 GiB of KV cache hold 0 tokens"),
        ("70b-tp8", {"kv_cache_dtype": "int8"}, "a KV cache in int8 turns paged context attention off"),
        ("70b-tp8", {"kv_cache_dtype": "fp8"}, "a KV cache in fp8 goes with fp8 weights only"),
        ("8b-tp1", {"speculative": "eagle"}, "eagle does not go with chunked context"),
        ("8b-tp1", {"speculative": "medusa"}, "medusa does not go with chunked context"),
        ("8b-tp1", {"max_seq_len": 131_073}, "max_seq_len 131073 is beyond the 131072 positions of the model"),
        ("8b-tp1", {"tensor_parallel_size": 3}, "heads cannot be shared by 3 GPUs"),
        ("8b-tp1", {"gpu": "a100-40gb"}, "gpu: a100-40gb is not known; known: a100-80gb"),
        ("llmapi", {}, "llmapi serves the checkpoint as it is"),
    ],
)
def test_what_cannot_be_is_refused_with_the_arithmetic(name: str, changes: dict[str, Any], told: str) -> None:
    shape = LLAMA_70B if name.startswith("70b") else LLAMA_8B
    assert any(told in each for each in refusals(profile(name, **changes), shape)), [
        *refusals(profile(name, **changes), shape)
    ]


def test_an_int8_cache_may_be_had_by_who_gives_up_reuse_and_chunks() -> None:
    wanted = profile("70b-tp8", kv_cache_dtype="int8", kv_cache_reuse=False, chunked_context=False)
    assert list(refusals(wanted, LLAMA_70B)) == []
    assert memory_plan(wanted, LLAMA_70B).sequences == 169, "twice those of 16 bit"
    convert, build = build_commands(wanted, LLAMA_70B, model="/model", out="/out")
    assert "--int8_kv_cache" in convert
    assert build[build.index("--use_paged_context_fmha") + 1] == "disable"


def test_a_newer_gpu_computes_what_an_a100_does_not() -> None:
    assert list(refusals(profile("70b-tp8", gpu="h100-80gb", quantization="fp8"), LLAMA_70B)) == []


@pytest.mark.parametrize(
    ("changes", "shape", "weights_gib", "kv_gib", "sequences"),
    [
        ({"tensor_parallel_size": 8}, LLAMA_70B, 16.4, 52.9, 84),
        ({"tensor_parallel_size": 4}, LLAMA_70B, 32.9, 38.1, 30),
        ({"tensor_parallel_size": 2, "quantization": "int8_wo"}, LLAMA_70B, 32.9, 38.1, 15),
        ({"tensor_parallel_size": 2, "quantization": "int4_awq"}, LLAMA_70B, 18.5, 51.0, 20),
        ({"tensor_parallel_size": 1, "quantization": "int4_awq"}, LLAMA_70B, 37.0, 34.4, 6),
        ({"tensor_parallel_size": 1}, LLAMA_8B, 15.0, 54.2, 27),
    ],
)
def test_memory_is_weights_an_overhead_and_a_share_of_the_rest(
    changes: dict[str, Any], shape: CheckpointShape, weights_gib: float, kv_gib: float, sequences: int
) -> None:
    memory = memory_plan(profile("70b-tp8", **changes), shape)
    assert (round(memory.weights_gpu_gib, 1), round(memory.kv_gpu_gib, 1)) == (weights_gib, kv_gib)
    assert memory.sequences == sequences


def test_the_shape_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_70B))
    shape = checkpoint_shape(tmp_path)
    assert shape == replace(LLAMA_70B, size=replace(LLAMA_70B.size, name=tmp_path.name))
    assert shape.size.kv_token_bytes() == 320 * 1024


@pytest.mark.parametrize("text", ["[]", "{}", "not JSON", '{"hidden_size": "wide"}'])
def test_a_file_that_describes_no_model_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match="--model names a Hugging Face checkpoint"):
        checkpoint_shape(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SettingsError, match=r"no config\.json of a model"):
        checkpoint_shape(tmp_path)


def test_a_model_without_a_converter_is_refused_by_name() -> None:
    assert any(
        "model_type falcon" in each for each in refusals(profile("8b-tp1"), replace(LLAMA_8B, model_type="falcon"))
    )


def test_drafts_of_a_lookahead_decoder_are_counted_as_upstream_counts_them() -> None:
    assert draft_tokens((7, 7, 7)) == 83
    assert draft_tokens((4, 1, 4)) == 0


if __name__ == "__main__":
    for each in CASES:
        (GOLDENS / f"{each}.sh").write_text(script(each))
