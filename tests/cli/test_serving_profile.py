"""A serving profile is read strictly: what it states wrongly is named with its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.cli.serving_profile import load_profile
from sidecar.core.errors import SettingsError

ROOT = Path(__file__).parents[2]
NAMES = sorted(each.stem for each in (ROOT / "model_repository/profiles").glob("*.yaml"))


def test_the_profiles_cover_the_usual_hosts() -> None:
    assert {"70b-tp8", "70b-tp4x2", "70b-awq-tp2", "8b-tp1", "llmapi"} <= set(NAMES)
    assert {name: load_profile(name, ROOT).tensor_parallel_size for name in NAMES} == {
        "70b-awq-tp2": 2,
        "70b-tp4x2": 4,
        "70b-tp8": 8,
        "8b-tp1": 1,
        "8b-tp1-lookahead": 1,
        "llmapi": 1,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_takes_every_prompt_that_leaves_a_token_to_generate(name: str) -> None:
    profile = load_profile(name, ROOT)
    assert profile.max_input_len == profile.max_seq_len - 1
    assert (profile.kv_cache_reuse, profile.chunked_context) == (True, True)
    assert profile.online_only == (name == "8b-tp1-lookahead")


def test_a_file_of_ones_own_is_read_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("backend: tensorrtllm\ntensor_parallel_size: 4\ntriton: ['gpu-3:8001']\n")
    assert load_profile(str(file), ROOT).triton == ("gpu-3:8001",)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("max_batch_sise: 3", "max_batch_sise"),
        ("quantization: int3", "quantization"),
        ("tensor_parallel_size: 0", "tensor_parallel_size must be >= 1, not 0"),
        ("triton: ['http://gpu:8001']", "triton: must be host:port"),
        ("lookahead: [7, 0, 7]", "lookahead"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "mine.yaml"
    kept = {"backend": "tensorrtllm", "tensor_parallel_size": "1", "triton": "['gpu:8001']"}
    kept.pop(line.split(":")[0], None)
    file.write_text("\n".join([*(f"{key}: {value}" for key, value in kept.items()), line]))
    with pytest.raises(SettingsError, match=f"mine.yaml: .*{told}"):
        load_profile(str(file), ROOT)


def test_an_unknown_name_is_answered_with_those_that_are_there() -> None:
    with pytest.raises(SettingsError, match=r"70b-tp9\.yaml; known: .*70b-tp8"):
        load_profile("70b-tp9", ROOT)
