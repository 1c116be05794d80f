"""What `tensorrt_llm.LLM` is given: from the parameters of config.pbtxt, from one call's tensors, from the process.

Names and meanings: TensorRT-LLM 1.1 to 1.3, tensorrt_llm/llmapi/llm.py, llm_args.py and sampling_params.py.
Nothing here imports the library.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from math import inf
from typing import Any, TypedDict

from engine.calls import EngineCall, UnsupportedError
from engine.parameters import EngineParameters

Version = tuple[int, int, int, float]  # the last is the release candidate; a release stands above all of its own
TRTLLM_SAMPLER, TORCH_SAMPLER = "TRTLLMSampler", "TorchSampler"
# The library took penalties and seeds without a word and ignored them in TorchSampler, its default: TRT-LLM #9442,
# #16485 (penalties, July 2026) and #17172 (seeds, August 2026). TRTLLMSampler knows both; 1.3.0rc26 rejects it.
ONE_SAMPLER: Version = (1, 3, 0, 26)
SEEDS: Version = (1, 3, 0, inf)
# What mpirun tells its children about their job. A process that starts ranks of its own must not take it for its own.
_JOB = ("OMPI_", "PMIX_", "PMI_", "ORTE_")
_CONFIGURATION = ("OMPI_MCA_", "PMIX_MCA_", "OMPI_ALLOW_RUN_AS_ROOT")
_RUNTIME = ("OMPI_MCA_orte_",)  # named like configuration, but of the running job


class LlmArguments(TypedDict):
    """The keyword arguments of `LLM`."""

    model: str
    backend: str
    tensor_parallel_size: int
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    enable_chunked_prefill: bool
    enable_iter_perf_stats: bool
    kv_cache_config: dict[str, Any]
    scheduler_config: dict[str, Any]


class SamplingArguments(TypedDict):
    """The keyword arguments of `SamplingParams`."""

    max_tokens: int
    end_id: int
    pad_id: int
    ignore_eos: bool
    n: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    min_tokens: int | None
    stop_token_ids: list[int] | None
    bad_token_ids: list[int] | None
    include_stop_str_in_output: bool
    return_perf_metrics: bool
    detokenize: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LibrarySampler:
    """Sampler that draws the tokens, and what of a call it would ignore."""

    sampler_type: str
    penalties: bool = True
    seeds: bool = True


def version_of(text: str) -> Version:
    """The version, in an order that compares. Raises ValueError for a text that is none."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)(?:\.?(?:rc(\d+)|(dev|a|b)\d*))?", text)
    if found is None:
        raise ValueError(f"the package tensorrt_llm has the version {text!r}, which cannot be read")
    major, minor, patch, candidate, earlier = found.groups()
    return int(major), int(minor), int(patch), float(candidate) if candidate else 0 if earlier else inf


def sampler_of(version: str, parameters: EngineParameters) -> LibrarySampler:
    """The sampler that obeys whole calls in this version, or the one that the parameter `sampler_type` names."""
    found = version_of(version)
    asked = parameters.text("sampler_type", TRTLLM_SAMPLER if found < ONE_SAMPLER else TORCH_SAMPLER)
    if asked not in (TRTLLM_SAMPLER, TORCH_SAMPLER):
        raise ValueError(f"parameter 'sampler_type' must be {TRTLLM_SAMPLER} or {TORCH_SAMPLER}, not {asked!r}")
    if asked == TORCH_SAMPLER:
        return LibrarySampler(sampler_type=asked, penalties=found >= ONE_SAMPLER, seeds=found >= SEEDS)
    if found >= ONE_SAMPLER:
        raise ValueError(f"parameter 'sampler_type' is {asked}, which tensorrt_llm {version} has no more")
    return LibrarySampler(sampler_type=asked)


def llm_arguments(parameters: EngineParameters) -> LlmArguments:
    """The keyword arguments of `LLM` for the parameters of config.pbtxt. Raises ValueError naming a wrong one."""
    model = parameters.text("gpt_model_path", "")
    if not model:
        raise ValueError("parameter 'gpt_model_path' must name the model that engine=llmapi loads")
    cache: dict[str, Any] = {"enable_block_reuse": parameters.flag("enable_kv_cache_reuse", True)}
    for key, name in (
        ("max_tokens_in_paged_kv_cache", "max_tokens"),
        ("kv_cache_host_memory_bytes", "host_cache_size"),
    ):
        if parameters.text(key, ""):
            cache[name] = parameters.number(key, 0)
    cache["free_gpu_memory_fraction"] = _fraction(parameters, "kv_cache_free_gpu_mem_fraction", 0.9)
    return {
        "model": model,
        "backend": "pytorch",
        "tensor_parallel_size": parameters.number("tensor_parallel_size", 1),
        "max_batch_size": parameters.number("max_batch_size", 64),
        "max_num_tokens": parameters.number("max_num_tokens", 8192),
        "max_seq_len": parameters.number("max_seq_len", 16384),
        "enable_chunked_prefill": parameters.flag("enable_chunked_context", True),  # the library's default is false
        "enable_iter_perf_stats": True,
        "kv_cache_config": cache,
        "scheduler_config": {
            "capacity_scheduler_policy": parameters.text("batch_scheduler_policy", "guaranteed_no_evict").upper()
        },
    }


def _fraction(parameters: EngineParameters, key: str, default: float) -> float:
    text = parameters.text(key, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise ValueError(f"parameter '{key}' must be above 0 and below 1, not {text!r}")
    return value


def sampling_arguments(call: EngineCall, sampler: LibrarySampler) -> SamplingArguments:
    """The keyword arguments of `SamplingParams`. Raises UnsupportedError naming the tensor that cannot be obeyed."""
    _refuse(call, sampler)
    sampling = call.sampling
    # The library is greedy only where nothing is set. A temperature of 1 alone is the whole distribution for it, and
    # greedy for the engine contract.
    drawn = not sampling.greedy
    return {
        "max_tokens": call.output_tokens_max,
        "end_id": -1 if call.end_id is None else call.end_id,
        "pad_id": -1 if call.end_id is None else call.end_id,
        "ignore_eos": call.end_id is None,
        "n": call.sequences,
        "temperature": sampling.temperature if drawn else None,
        "top_k": sampling.top_k or None if drawn else None,
        "top_p": sampling.top_p or None if drawn else None,
        "seed": sampling.seed if drawn and sampler.seeds else None,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "min_tokens": sampling.min_tokens or None,
        "stop_token_ids": [word[0] for word in call.stop_words if len(word) == 1] or None,
        "bad_token_ids": [word[0] for word in call.bad_words] or None,
        "include_stop_str_in_output": True,  # the engine contract: what ended an answer stands in it
        "return_perf_metrics": "return_perf_metrics" in call.returns,
        "detokenize": False,
    }


def _refuse(call: EngineCall, sampler: LibrarySampler) -> None:
    """Raise UnsupportedError for what the library would ignore or not take."""
    sampling = call.sampling
    if any(len(word) > 1 for word in call.bad_words):
        raise UnsupportedError("tensor 'bad_words_list': words of several tokens cannot be passed to tensorrt_llm")
    if call.embedding_bias:
        raise UnsupportedError("tensor 'embedding_bias' is not passed to tensorrt_llm")
    if call.sequences > 1 and sampling.greedy:
        raise UnsupportedError("tensor 'num_return_sequences' > 1 needs sampling: set runtime_top_k or runtime_top_p")
    if sampling.penalised and not sampler.penalties:
        for name, neutral in (("repetition_penalty", 1), ("presence_penalty", 0), ("frequency_penalty", 0)):
            if getattr(sampling, name) != neutral:
                raise UnsupportedError(f"tensor '{name}' is ignored by the {sampler.sampler_type} of this tensorrt_llm")
    if sampling.seed and not sampling.greedy and not sampler.seeds:
        raise UnsupportedError(f"tensor 'seed' is ignored by the {sampler.sampler_type} of this tensorrt_llm")


def prepare_process(environment: MutableMapping[str, str], parameters: EngineParameters) -> None:
    """Make the process one that may start ranks of its own, on the devices that the parameters name.

    Under mpirun the library would take the server's job for its own and wait for ranks that never come. The devices
    must stand there before the library is imported: with it CUDA starts, and its children inherit what it opened.
    NVIDIA's own model of this kind (all_models/llmapi) does the same.
    """
    for name in list(environment):
        if name.startswith(_JOB) and (name.startswith(_RUNTIME) or not name.startswith(_CONFIGURATION)):
            del environment[name]
    if devices := parameters.text("gpu_device_ids", ""):
        if not re.fullmatch(r"\d+(,\d+)*", devices):
            raise ValueError(f"parameter 'gpu_device_ids' must be numbers with commas between them, not {devices!r}")
        environment["CUDA_VISIBLE_DEVICES"] = devices
