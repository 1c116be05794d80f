"""How an engine is built for a serving profile: what cannot be, with the arithmetic, and the commands for what can.

Sources: TensorRT-LLM 1.2, examples/models/core/*/convert_checkpoint.py, examples/quantization/quantize.py,
tensorrt_llm/builder.py (trtllm-build) and docs/source/reference/memory.md. Nothing here runs anything.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.cli.serving_profile import ServingProfile
from sidecar.core.errors import SettingsError
from sidecar.plan.capacity import OVERHEAD_GIB, SEQUENCES_MIN, MemoryPlan, ModelSize

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"  # the last tags that build engines: 26.04 to 26.07
CONVERTERS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen"}  # by model_type; folders of examples/models/core
WEIGHTS = {"int8_wo": "int8", "int8_sq": "int8", "int4_wo": "int4", "int4_awq": "int4"}  # as `sidecar plan` names them
SM_NEEDED = {"fp8": 89, "fp8_pc_pt": 90, "w4a8_awq": 89, "nvfp4": 100}
CALIBRATED = ("int4_awq", "int8_sq")
Command = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuKind:
    """Kind of GPU: what it can compute with, and how much it holds."""

    sm: int  # compute capability, times ten
    usable_gib: float


GPUS = {"a100-80gb": GpuKind(sm=80, usable_gib=79.2), "h100-80gb": GpuKind(sm=90, usable_gib=79.2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointShape:
    """Figures of a Hugging Face config.json on which a build and its memory depend."""

    model_type: str
    heads: int
    positions: int
    size: ModelSize


def checkpoint_shape(model: Path) -> CheckpointShape:
    """Read `model`/config.json. Raises SettingsError if it is none of a model that we know how to convert."""
    path = model / "config.json"
    try:
        config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        kv_heads, head_dim = config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads
        layer = 2 * hidden * head_dim * (heads + kv_heads) + 3 * hidden * config["intermediate_size"]
        tables = (1 if config.get("tie_word_embeddings") else 2) * config["vocab_size"] * hidden
        return CheckpointShape(
            model_type=config["model_type"],
            heads=heads,
            positions=config["max_position_embeddings"],
            size=ModelSize(
                name=model.name,
                parameters=config["num_hidden_layers"] * layer + tables,
                layers=config["num_hidden_layers"],
                kv_heads=kv_heads,
                head_dim=head_dim,
            ),
        )
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}; --model names a Hugging Face checkpoint") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is no config.json of a model that is known here: {error!r}") from None


def memory_plan(profile: ServingProfile, shape: CheckpointShape) -> MemoryPlan:
    """Return what each GPU of the engine holds. Raises ValueError for a KV cache in 8 bits beside reuse."""
    return MemoryPlan(
        model=shape.size,
        tp=profile.tensor_parallel_size,
        weights=WEIGHTS.get(profile.quantization, "bf16"),
        kv="bf16" if profile.kv_cache_dtype == "auto" else profile.kv_cache_dtype,
        reuse=profile.kv_cache_reuse,
        gpu_gib=GPUS[profile.gpu].usable_gib,
        length=profile.max_seq_len,
        kv_fraction=profile.kv_cache_free_gpu_mem_fraction,
    )


def refusals(profile: ServingProfile, shape: CheckpointShape) -> Iterator[str]:
    """Say what cannot be built, or would not serve as the sidecar needs it; nothing if it can."""
    if profile.backend == "llmapi":
        yield "llmapi serves the checkpoint as it is; there is nothing to build: sidecar fill"
        return
    if profile.gpu not in GPUS:
        yield f"gpu: {profile.gpu} is not known; known: {', '.join(GPUS)}"
        return
    gpu, tp = GPUS[profile.gpu], profile.tensor_parallel_size
    if (needed := SM_NEEDED.get(profile.quantization, 0)) > gpu.sm:
        yield f"{profile.quantization} needs SM {needed}, and {profile.gpu} is SM {gpu.sm}: use int4_awq or int8_wo"
    if profile.kv_cache_dtype != "auto" and (profile.kv_cache_reuse or profile.chunked_context):
        yield (
            f"a KV cache in {profile.kv_cache_dtype} turns paged context attention off, and with it reuse and chunks:"
            " a stopped item would be computed anew, and a long prompt would stall every stream. Keep it auto"
        )
    if profile.kv_cache_dtype == "fp8" and not profile.quantization.startswith("fp8"):
        yield "a KV cache in fp8 goes with fp8 weights only"
    if profile.speculative in ("eagle", "medusa"):
        yield f"{profile.speculative} does not go with chunked context, which online needs; use lookahead or none"
    if profile.max_seq_len > shape.positions:
        yield (
            f"max_seq_len {profile.max_seq_len} is beyond the {shape.positions} positions of the model"
            " (max_position_embeddings): lower it, or take a checkpoint with scaled positions"
        )
    if shape.heads % tp:
        yield f"{shape.heads} attention heads cannot be shared by {tp} GPUs"
    if shape.model_type not in CONVERTERS:
        yield f"model_type {shape.model_type} is not known here; known: {', '.join(CONVERTERS)}"
    yield from _memory_refusals(profile, shape)


def _memory_refusals(profile: ServingProfile, shape: CheckpointShape) -> Iterator[str]:
    if profile.kv_cache_dtype != "auto" and profile.kv_cache_reuse:
        return  # refused for that already
    memory, share = memory_plan(profile, shape), profile.kv_cache_free_gpu_mem_fraction
    if not memory.refusal:
        return
    weights = f"{memory.weights_gpu_gib:.1f}"
    yield (
        f"{shape.size.parameters / 1e9:.1f}e9 parameters over {memory.tp} GPUs are {weights} GiB each;"
        f" ({memory.gpu_gib} - {weights} - {OVERHEAD_GIB}) x {share} = {memory.kv_gpu_gib:.1f} GiB of KV cache hold"
        f" {memory.kv_tokens:,} tokens, {memory.sequences} sequences of {memory.length:,}; at least"
        f" {SEQUENCES_MIN} are needed: use more GPUs, smaller weights or shorter sequences"
    )


def build_commands(
    profile: ServingProfile, shape: CheckpointShape, *, model: str, out: str, calibration: str | None = None
) -> list[Command]:
    """Return what builds the engine of `profile` inside the image: a checkpoint for the GPUs, then the engine.

    `calibration` is the folder of a data set; None = the tools fetch the one that they know (cnn_dailymail).
    """
    return [_checkpoint_command(profile, shape, model, out, calibration), _engine_command(profile, out)]


def _checkpoint_command(
    profile: ServingProfile, shape: CheckpointShape, model: str, out: str, calibration: str | None
) -> Command:
    tp = str(profile.tensor_parallel_size)
    kv: Command = ()
    common = ("--model_dir", model, "--output_dir", f"{out}/ckpt", "--dtype", profile.dtype, "--tp_size", tp)
    data = ("--calib_dataset", calibration) if calibration and profile.quantization in CALIBRATED else ()
    if profile.quantization in (*SM_NEEDED, "int4_awq"):
        if profile.kv_cache_dtype != "auto":
            kv = ("--kv_cache_dtype", profile.kv_cache_dtype)
        block = ("--awq_block_size", "128") if profile.quantization.endswith("awq") else ()
        size = ("--calib_size", "32")
        quantize = ("python3", "/app/examples/quantization/quantize.py", "--qformat", profile.quantization)
        return (*quantize, *common, *block, *size, *data, *kv)
    convert = ("python3", f"/app/examples/models/core/{CONVERTERS[shape.model_type]}/convert_checkpoint.py")
    weights = {
        "none": (),
        "int8_wo": ("--use_weight_only", "--weight_only_precision", "int8"),
        "int4_wo": ("--use_weight_only", "--weight_only_precision", "int4"),
        "int8_sq": ("--smoothquant", "0.5", "--per_token", "--per_channel"),
    }[profile.quantization]
    if profile.kv_cache_dtype == "int8":
        kv = ("--int8_kv_cache",)
    return (*convert, *common, "--workers", tp, *weights, *data, *kv)


def _engine_command(profile: ServingProfile, out: str) -> Command:
    paged = "enable" if profile.kv_cache_reuse or profile.chunked_context else "disable"
    options = {
        "checkpoint_dir": f"{out}/ckpt",
        "output_dir": f"{out}/engine",
        "workers": profile.tensor_parallel_size,
        "gpt_attention_plugin": profile.dtype,
        "gemm_plugin": "auto",
        "remove_input_padding": "enable",
        "kv_cache_type": "paged",
        "context_fmha": "enable",
        "use_paged_context_fmha": paged,
        "max_batch_size": profile.max_batch_size,
        "max_input_len": profile.max_input_len,  # the default of 1024 refuses long prompts and most resumes
        "max_seq_len": profile.max_seq_len,
        "max_num_tokens": profile.max_num_tokens,
    }
    if profile.speculative == "lookahead":
        options |= {"speculative_decoding_mode": "lookahead_decoding", "max_draft_len": draft_tokens(profile.lookahead)}
    return ("trtllm-build", *(word for name, value in options.items() for word in (f"--{name}", str(value))))


def draft_tokens(lookahead: tuple[int, int, int]) -> int:
    """Return max_draft_len of a lookahead decoder (examples/lookahead/README.md)."""
    window, ngram, verification = lookahead
    return (0 if ngram == 1 else ngram - 2) + (window - 1 + verification) * (ngram - 1)


def in_docker(command: Command, image: str, mounts: Mapping[str, str]) -> Command:
    """Return the command that runs `command` in the image. `mounts`: from the folder here to the one there."""
    limits = ("--gpus", "all", "--ipc=host", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864")
    volumes = (word for here, there in mounts.items() for word in ("-v", f"{here}:{there}"))
    return ("docker", "run", "--rm", *limits, *volumes, image, *command)


def as_script(title: str, memory: MemoryPlan, commands: Sequence[Command]) -> str:
    """Return the commands as a shell script, one option a line."""
    told = (
        f"{memory.weights_gpu_gib:.1f} GiB of weights and {memory.kv_gpu_gib:.1f} GiB of KV cache per GPU:"
        f" {memory.kv_tokens:,} tokens, {memory.sequences} sequences of full length"
    )
    lines = ["#!/usr/bin/env bash", f"# {title}: {told}.", "set -euo pipefail"]
    return "\n".join([*lines, *map(_shown, commands)]) + "\n"


def _shown(command: Command) -> str:
    """Options begin a line of their own, with their value behind them."""
    text = ""
    for word in command:
        text += (" \\\n  " if word.startswith("-") else " " if text else "") + shlex.quote(word)
    return text
