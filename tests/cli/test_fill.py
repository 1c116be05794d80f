"""What `sidecar fill` writes is what TensorRT-LLM's Triton backend reads, for every profile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from sidecar import data
from sidecar.cli.fill import ServingPlace, register_fill, sidecar_settings, write_repository
from sidecar.cli.main import main
from sidecar.cli.serving_profile import load_profile
from sidecar.core.errors import SettingsError
from sidecar.settings.file import load_settings
from tests.cli.test_serving_profile import NAMES, ROOT

TOKENIZER = ROOT / "model_repository/tokenizer"


def boolean(text: str) -> None:
    assert text.lower() in ("true", "false", "0", "1")


def numbers(text: str) -> None:
    assert [int(each) for part in text.split(";") for each in part.split(",")]


def anything(text: str) -> None:
    """Any text will do."""


# Every parameter that the backend reads: triton_backend/inflight_batcher_llm/src/model_instance_state.cc and
# model_state.cc of TensorRT-LLM 1.2. Guarded: a key that is missing, or holds no such value, means the default.
# The others end the load of the model.
READ: dict[str, tuple[Callable[[str], object], bool]] = {
    "gpt_model_type": (anything, False),
    "tokenizer_dir": (anything, False),
    "xgrammar_tokenizer_info_path": (anything, False),
    "guided_decoding_backend": (anything, False),
    "gpt_model_path": (anything, True),
    "encoder_model_path": (anything, True),
    "executor_worker_path": (anything, True),
    "batch_scheduler_policy": (anything, True),
    "decoding_mode": (anything, True),
    "lora_prefetch_dir": (anything, True),
    "medusa_choices": (anything, True),
    "eagle_choices": (anything, True),
    "max_beam_width": (int, True),
    "max_tokens_in_paged_kv_cache": (int, True),
    "sink_token_length": (int, True),
    "num_nodes": (int, True),
    "iter_stats_max_iterations": (int, True),
    "request_stats_max_iterations": (int, True),
    "kv_cache_host_memory_bytes": (int, True),
    "cuda_graph_cache_size": (int, True),
    "recv_poll_period_ms": (int, True),
    "cancellation_check_period_ms": (int, True),
    "stats_check_period_ms": (int, True),
    "lookahead_window_size": (int, True),
    "lookahead_ngram_size": (int, True),
    "lookahead_verification_set_size": (int, True),
    "lora_cache_optimal_adapter_size": (int, True),
    "lora_cache_max_adapter_size": (int, True),
    "lora_cache_host_memory_bytes": (int, True),
    "lora_cache_gpu_memory_fraction": (float, True),
    "kv_cache_free_gpu_mem_fraction": (float, True),
    "cross_kv_cache_fraction": (float, True),
    "gpu_weights_percent": (float, True),
    "enable_kv_cache_reuse": (boolean, True),
    "enable_chunked_context": (boolean, True),
    "enable_trt_overlap": (boolean, True),
    "exclude_input_in_output": (boolean, True),
    "normalize_log_probs": (boolean, True),
    "kv_cache_onboard_blocks": (boolean, True),
    "multi_block_mode": (boolean, True),
    "cuda_graph_mode": (boolean, True),
    "enable_context_fmha_fp32_acc": (boolean, True),
    "speculative_decoding_fast_logits": (boolean, True),
    "max_attention_window_size": (numbers, True),
    "gpu_device_ids": (numbers, True),
    "participant_ids": (numbers, True),
}
CORE = {"FORCE_CPU_ONLY_INPUT_TENSORS"}  # read by Triton itself
CHOICES = {
    "gpt_model_type": {"inflight_fused_batching"},
    "batch_scheduler_policy": {"guaranteed_no_evict"},
    "decoding_mode": {"lookahead"},
}
LOOKAHEAD = {"lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def filled(name: str, out: Path) -> Path:
    write_repository(load_profile(name, ROOT), ServingPlace(), ROOT, out)
    return out


def model(folder: Path) -> Any:
    """The config.pbtxt of one model, read as Triton reads it."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def parameters(folder: Path) -> dict[str, str]:
    return {key: value.string_value for key, value in model(folder).parameters.items()}


def test_nothing_that_is_served_holds_a_placeholder(name: str, tmp_path: Path) -> None:
    configs = sorted(filled(name, tmp_path).rglob("config.pbtxt"))
    assert [each.parent.name for each in configs] == ["tensorrt_llm", "ensemble", "postprocessing", "preprocessing"]
    assert [each for each in configs if "${" in each.read_text()] == []
    assert all((each.parent / "1").is_dir() for each in configs)


@pytest.mark.parametrize("name", [each for each in NAMES if each != "llmapi"])
def test_the_backend_finds_every_parameter_that_it_needs_and_can_read_each(name: str, tmp_path: Path) -> None:
    profile = load_profile(name, ROOT)
    found = parameters(filled(name, tmp_path) / "engine/tensorrt_llm")
    assert found.keys() <= READ.keys() | CORE, "the backend would never look at the others"
    assert {key for key, (_, guarded) in READ.items() if not guarded} <= found.keys()
    for key, value in found.items():
        if key in READ:
            READ[key][0](value)
        assert value in CHOICES.get(key, {value})
    assert found["gpt_model_path"] == "/engine", "without a path that exists there is no engine to load"
    speculates = profile.speculative == "lookahead"
    assert (LOOKAHEAD | {"decoding_mode"}) & found.keys() == (LOOKAHEAD | {"decoding_mode"} if speculates else set())


def test_what_the_sidecar_rests_on_is_on_in_every_profile(name: str, tmp_path: Path) -> None:
    found = parameters(filled(name, tmp_path) / "engine/tensorrt_llm")
    assert {key: found[key] for key in ("enable_kv_cache_reuse", "enable_chunked_context")} == {
        "enable_kv_cache_reuse": "true",
        "enable_chunked_context": "true",
    }
    assert found["batch_scheduler_policy"] == "guaranteed_no_evict"
    assert int(found["cancellation_check_period_ms"]) <= 20


def test_the_engine_model_takes_what_the_profile_says(name: str, tmp_path: Path) -> None:
    profile = load_profile(name, ROOT)
    config = model(filled(name, tmp_path) / "engine/tensorrt_llm")
    assert config.max_batch_size == profile.max_batch_size
    assert config.backend == ("python" if profile.backend == "llmapi" else "tensorrtllm")
    if profile.backend == "llmapi":
        values = parameters(tmp_path / "engine/tensorrt_llm")
        assert (values["engine"], values["gpt_model_path"]) == ("llmapi", "/engine")
        assert (values["max_num_tokens"], values["max_seq_len"]) == ("8192", "16384")
        assert "max_tokens_in_paged_kv_cache" not in values, "the CPU engine's would leave the GPU's memory empty"


def test_the_tokenizer_is_the_same_for_triton_and_the_sidecar(name: str, tmp_path: Path) -> None:
    profile, place = load_profile(name, ROOT), ServingPlace(tokenizer_dir="/srv/tokenizer")
    write_repository(profile, place, ROOT, tmp_path)
    for text_model in ("preprocessing", "postprocessing"):
        assert parameters(tmp_path / "text" / text_model)["tokenizer_dir"] == "/srv/tokenizer"
        assert [each.count for each in model(tmp_path / "text" / text_model).instance_group] == [4]
    settings = yaml.safe_load(sidecar_settings(name, profile, place, "{}", profile.triton))
    assert settings["tokenizer"] == "/srv/tokenizer"


def test_the_settings_are_the_given_ones_with_the_engines_of_the_profile(name: str, tmp_path: Path) -> None:
    profile, file = load_profile(name, ROOT), tmp_path / "sidecar.yaml"
    given = data.read("sidecar.example.yaml")
    place = ServingPlace(tokenizer_dir=str(TOKENIZER))
    file.write_text(sidecar_settings(name, profile, place, given, profile.triton))

    settings = load_settings(file, {})
    assert [each.target for each in settings.engines] == list(profile.triton)
    for index, engine in enumerate(settings.engines):
        host = profile.triton[index].split(":")[0]
        assert (engine.name, engine.metrics_url) == (f"{name}-{index}", f"http://{host}:8002/metrics")
        assert (engine.slots, engine.tokens_max) == (profile.max_batch_size, profile.max_seq_len)
    assert (settings.offline is None) == profile.online_only, (
        "backfill would fill the batch that speculation needs small"
    )
    assert settings.scheduler.window_ms == 15


def test_what_the_settings_say_of_an_engine_beside_the_profile_is_kept_for_each() -> None:
    profile = load_profile("70b-tp4x2", ROOT)
    given = "engines: [{name: x, slots: 3, usd_per_hour: 8.5, slots_online_min: 4}]"
    text = sidecar_settings("mine", profile, ServingPlace(), given, ["127.0.0.1:8011"])
    assert yaml.safe_load(text)["engines"] == [
        {
            "name": "mine-0",
            "slots": 64,
            "usd_per_hour": 8.5,
            "slots_online_min": 4,
            "target": "127.0.0.1:8011",
            "metrics_url": "http://127.0.0.1:8002/metrics",
            "model": "tensorrt_llm",
            "text_model": "ensemble",
            "tokens_max": 16384,
        }
    ]


def test_the_python_backend_finds_its_packages_without_the_checkout(tmp_path: Path) -> None:
    packages = filled("llmapi", tmp_path) / "python"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import engine.contract, engine.gauges, engine.parameters, engine.serving\n"
        "ours = [m for n, m in sys.modules.items() if n.split('.')[0] in ('engine', 'sidecar')]\n"
        "print(all(m.__file__.startswith(sys.argv[1]) for m in ours), len(ours) > 5)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(packages)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_filling_again_replaces_what_was_filled_before(tmp_path: Path) -> None:
    assert (filled("llmapi", tmp_path) / "python").exists()
    stray = tmp_path / "engine/tensorrt_llm/1/model.py"
    assert stray.exists()
    filled("70b-tp8", tmp_path)
    assert not stray.exists()
    assert not (tmp_path / "python").exists()


@pytest.mark.parametrize("part", ["engine", "text"])
def test_a_folder_that_fill_did_not_write_is_left_alone(part: str, tmp_path: Path) -> None:
    """Such as the checkout, or what `build-engine` made: both have a folder engine/."""
    (tmp_path / part).mkdir()
    (tmp_path / part / "rank0.engine").touch()
    with pytest.raises(SettingsError, match=f"it would lose .*{part}"):
        filled("8b-tp1", tmp_path)
    assert [each.name for each in tmp_path.rglob("*")] == [part, "rank0.engine"]


def test_a_template_that_the_profile_does_not_fill_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model_repository/engine_cpp/tensorrt_llm"
    folder.mkdir(parents=True)
    (tmp_path / "model_repository/text").symlink_to(ROOT / "model_repository/text")
    template = (ROOT / "model_repository/engine_cpp/tensorrt_llm/config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(template.replace('"inflight_fused_batching"', '"${batching_strategy}"'))
    with pytest.raises(SettingsError, match=r"nothing fills \$\{batching_strategy\}"):
        write_repository(load_profile("8b-tp1", ROOT), ServingPlace(), tmp_path, tmp_path / "out")


def test_a_template_without_a_parameter_that_the_backend_needs_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model_repository/engine_cpp/tensorrt_llm"
    folder.mkdir(parents=True)
    (tmp_path / "model_repository/text").symlink_to(ROOT / "model_repository/text")
    template = (ROOT / "model_repository/engine_cpp/tensorrt_llm/config.pbtxt").read_text()
    lines = [line for line in template.splitlines(keepends=True) if "xgrammar" not in line]
    (folder / "config.pbtxt").write_text("".join(lines))
    with pytest.raises(SettingsError, match="no parameter 'xgrammar_tokenizer_info_path'"):
        write_repository(load_profile("8b-tp1", ROOT), ServingPlace(), tmp_path, tmp_path / "out")


def test_host_memory_for_the_cache_is_stated_where_the_profile_wants_it(tmp_path: Path) -> None:
    profile = replace(load_profile("8b-tp1", ROOT), kv_cache_host_memory_bytes=64 << 30)
    write_repository(profile, ServingPlace(), ROOT, tmp_path)
    assert parameters(tmp_path / "engine/tensorrt_llm")["kv_cache_host_memory_bytes"] == "68719476736"


def call(*arguments: str) -> int:
    return main(["fill", *arguments], {}, [register_fill])


def test_the_command_writes_one_directory_for_both_containers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "serving"
    assert call("70b-tp8", "--out", str(out), "--project", str(ROOT)) == 0
    assert sorted(each.name for each in out.iterdir()) == ["engine", "run.sh", "sidecar.yaml", "text"]
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("70b-tp9",), "no profile"),
        (("70b-tp8", "--project", "{tmp}"), "known: none in"),
        (("70b-tp8", "--engine-dir", "engine"), "engine_dir must be an absolute path"),
        (("70b-tp8", "--grpc-address", "8001"), "grpc_address must be host:port"),
        (("70b-tp8", "--triton", "nonsense"), "--triton must be host:port, not 'nonsense'"),
        (("70b-tp8", "--settings", "{tmp}/list.yaml"), "must be a mapping"),
        (("70b-tp8", "--settings", "{tmp}/latin.yaml"), "latin.yaml is not UTF-8"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_nothing_is_written(
    arguments: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.yaml").write_text("[]")
    (tmp_path / "latin.yaml").write_bytes(b"listen: \xe9")
    words = [each.format(tmp=tmp_path) for each in arguments]
    if "--project" not in words:
        words += ["--project", str(ROOT)]
    assert call(*words, "--out", str(tmp_path / "out")) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
