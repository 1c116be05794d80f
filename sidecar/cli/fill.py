"""`sidecar fill`: from a serving profile, the model repository that Triton serves and the settings of the sidecar.

It writes one directory, which both containers mount at one path:

    text/          preprocessing, postprocessing and the ensemble: rank 0 alone loads them
    engine/        tensorrt_llm: every rank loads it
    python/        only with llmapi: the packages that Triton's Python backend imports
    run.sh         starts Triton: one process for each rank of the engine, under mpirun
    sidecar.yaml   the settings of the sidecar, its engines being those of the profile
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import sidecar
from sidecar import data
from sidecar.cli.launch import launch_script
from sidecar.cli.model_config import unfilled, with_batch_size, with_instances, with_parameters
from sidecar.cli.serving_profile import ServingProfile, load_profile
from sidecar.core.errors import SettingsError
from sidecar.core.settings import require
from sidecar.settings.file import is_address

ENGINE_MODEL, TEXT_MODELS = "tensorrt_llm", ("preprocessing", "postprocessing", "ensemble")
METRICS_PORT = 8002
EXAMPLE = data.read("sidecar.example.yaml")
TEMPLATES = {"tensorrtllm": "engine_cpp", "llmapi": "engine_python"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlace:
    """Where what is filled finds everything: paths as both containers see them, and the port of Triton."""

    engine_dir: str = "/engine"  # what trtllm-build wrote; for llmapi the checkpoint
    tokenizer_dir: str = "/tokenizer"  # tokenizer.json, tokenizer_config.json and generation_config.json
    grpc_address: str = "0.0.0.0:8001"  # where Triton listens

    def __post_init__(self) -> None:
        for name in ("engine_dir", "tokenizer_dir"):
            path = getattr(self, name)
            require(path.startswith("/"), f"{name} must be an absolute path, not '{path}'")
        require(is_address(self.grpc_address), f"grpc_address must be host:port, not '{self.grpc_address}'")


def register_fill(subparsers: Any) -> None:
    """Add `fill`."""
    parser = subparsers.add_parser(
        "fill",
        help="write the model repository and the settings of a serving profile",
        description="Write what Triton serves and the sidecar's settings for a profile of model_repository/profiles."
        " What an earlier call wrote there is replaced.",
    )
    add, place = parser.add_argument, ServingPlace()
    add("profile", metavar="PROFILE", help="a name, such as 70b-tp8, or a file")
    add("--out", type=Path, default=Path("build/serving"), metavar="DIR", help="what to write (%(default)s)")
    add("--project", type=Path, default=Path(), metavar="DIR", help="holds model_repository/ and engine/ (here)")
    add("--settings", type=Path, metavar="FILE", help="the sidecar's settings but for its engines (an example)")
    add("--engine-dir", default=place.engine_dir, metavar="PATH", help="of the engine, in the containers (%(default)s)")
    add("--tokenizer-dir", default=place.tokenizer_dir, metavar="PATH", help="of the tokenizer (%(default)s)")
    add("--grpc-address", default=place.grpc_address, metavar="HOST:PORT", help="where Triton listens (%(default)s)")
    add("--triton", action="append", metavar="HOST:PORT", help="an engine's Triton, instead of those of the profile")
    parser.set_defaults(run=_fill)


def _fill(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    del environment
    profile = load_profile(options.profile, options.project)
    place = ServingPlace(
        engine_dir=options.engine_dir, tokenizer_dir=options.tokenizer_dir, grpc_address=options.grpc_address
    )
    for each in options.triton or ():
        if not is_address(each):
            raise SettingsError(f"--triton must be host:port, not {each!r}")
    try:
        settings = options.settings.read_text(encoding="utf-8") if options.settings else EXAMPLE
    except UnicodeDecodeError:
        raise SettingsError(f"{options.settings} is not UTF-8") from None
    text = sidecar_settings(Path(options.profile).stem, profile, place, settings, options.triton or profile.triton)
    write_repository(profile, place, options.project, options.out)
    (options.out / "sidecar.yaml").write_text(text, encoding="utf-8")
    print(f"wrote {options.out}: {len(TEXT_MODELS) + 1} models, run.sh and sidecar.yaml")
    return 0


def write_repository(profile: ServingProfile, place: ServingPlace, project: Path, out: Path) -> None:
    """Write the models and run.sh of `profile` to `out`. Raises SettingsError for a template that it does not fill."""
    templates = project / "model_repository"
    if not (templates / "text").is_dir():
        raise SettingsError(f"{templates} holds no templates; --project names the directory that has model_repository/")
    _begin(out, launch_script(profile, place.grpc_address))
    ignored = shutil.ignore_patterns("__pycache__", ".gitkeep")
    shutil.copytree(templates / "text", out / "text", ignore=ignored)
    shutil.copytree(templates / TEMPLATES[profile.backend], out / "engine", ignore=ignored)
    for model in ("preprocessing", "postprocessing"):
        config = with_instances((out / "text" / model / "config.pbtxt").read_text(), profile.tokenizer_instances)
        _write_config(out / "text" / model, with_parameters(config, {"tokenizer_dir": place.tokenizer_dir}))
    _write_config(out / "text" / "ensemble", (out / "text" / "ensemble" / "config.pbtxt").read_text())
    config = with_batch_size((out / "engine" / ENGINE_MODEL / "config.pbtxt").read_text(), profile.max_batch_size)
    _write_config(out / "engine" / ENGINE_MODEL, with_parameters(config, engine_parameters(profile, place)))
    if profile.backend == "llmapi":
        _write_packages(project, out / "python")


def _begin(out: Path, script: str) -> None:
    """Remove what was filled before, and write run.sh. Raises SettingsError for a folder that is somebody else's."""
    parts = [out / part for part in ("text", "engine", "python")]
    found = [str(part) for part in parts if part.exists()]
    if found and not (out / "run.sh").is_file():
        raise SettingsError(f"--out {out} is not what fill wrote before: it would lose {', '.join(found)}")
    out.mkdir(parents=True, exist_ok=True)
    # First of all: after an interruption it says that the rest is ours to replace.
    (out / "run.sh").write_text(script, encoding="utf-8")
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)


def _write_config(folder: Path, config: str) -> None:
    if left := unfilled(config):
        raise SettingsError(f"{folder / 'config.pbtxt'}: nothing fills {', '.join(left)}")
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    (folder / "1").mkdir(exist_ok=True)  # a model without files needs its version all the same


def _write_packages(project: Path, out: Path) -> None:
    """Write what model.py imports: `engine`, and the one room of the sidecar that it builds on."""
    if not (project / "engine").is_dir():
        raise SettingsError(f"{project} holds no engine/, which llmapi is served by")
    rooms = Path(sidecar.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(project / "engine", out / "engine", ignore=ignored)
    shutil.copytree(rooms / "inflight", out / "sidecar" / "inflight", ignore=ignored)
    shutil.copy(rooms / "__init__.py", out / "sidecar")


def engine_parameters(profile: ServingProfile, place: ServingPlace) -> dict[str, str | None]:
    """Return the values of the engine model's parameters. None = its line goes, and the backend takes its default."""
    shared = {
        "gpt_model_path": place.engine_dir,
        "tokenizer_dir": place.tokenizer_dir,
        "enable_kv_cache_reuse": str(profile.kv_cache_reuse).lower(),
        "enable_chunked_context": str(profile.chunked_context).lower(),
        "kv_cache_free_gpu_mem_fraction": str(profile.kv_cache_free_gpu_mem_fraction),
        "max_tokens_in_paged_kv_cache": None,  # the fraction alone: a number would have to follow the GPU's memory
        "kv_cache_host_memory_bytes": str(profile.kv_cache_host_memory_bytes or "") or None,
    }
    if profile.backend == "llmapi":
        return shared | {
            "engine": "llmapi",
            "tensor_parallel_size": str(profile.tensor_parallel_size),
            "max_num_tokens": str(profile.max_num_tokens),
            "max_seq_len": str(profile.max_seq_len),
        }
    window, ngram, verification = map(str, profile.lookahead) if profile.speculative == "lookahead" else (None,) * 3
    return shared | {
        "gpu_device_ids": None,  # a container has the cards of its engine and no others
        "decoding_mode": None if profile.speculative == "none" else profile.speculative,
        "lookahead_window_size": window,
        "lookahead_ngram_size": ngram,
        "lookahead_verification_set_size": verification,
        "guided_decoding_backend": "",  # read without a guard: the keys have to be there
        "xgrammar_tokenizer_info_path": "",
    }


def sidecar_settings(
    name: str, profile: ServingProfile, place: ServingPlace, settings: str, triton: Sequence[str]
) -> str:
    """Return `settings` with the engines of the profile; what their first engine states beside is kept for each."""
    try:
        document = yaml.safe_load(settings)
    except yaml.YAMLError as error:
        raise SettingsError(f"the settings are not YAML: {' '.join(str(error).split())}") from None
    match document:
        case {"engines": [dict(first), *_]}:
            pass
        case {"engines": [] | None} | dict():
            first = {}
        case _:
            raise SettingsError("the settings must be a mapping")
    document["tokenizer"] = place.tokenizer_dir
    document["engines"] = [
        first
        | {
            "name": f"{name}-{index}",
            "target": address,
            "metrics_url": f"http://{address.rpartition(':')[0]}:{METRICS_PORT}/metrics",
            "model": ENGINE_MODEL,
            "text_model": "ensemble",
            "slots": profile.max_batch_size,
            "tokens_max": profile.max_seq_len,
        }
        for index, address in enumerate(triton)
    ]
    if profile.online_only:
        document.pop("offline", None)
    header = (
        f"# Written by `sidecar fill {name}`. Change the profile or the settings that it began with, and fill again.\n"
    )
    return header + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
