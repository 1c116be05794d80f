"""The tensors of the engine model `tensorrt_llm`, described once: names, types, dims, which may be left out.

From NVIDIA's all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt. Our Python-backend config, the C++ engine's
config and what the sidecar sends are compared with this description in tests/engine/test_contract.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.calls import EngineCall, OutputPart, UnsupportedError
from engine.sampling import EngineSampling
from sidecar.inflight.blocks import Ids, Retention, RetentionRange

Array: TypeAlias = NDArray[Any]
Inputs: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One line of the contract. `dims` are without the batch dimension; on the wire it comes first."""

    name: str
    dtype: str  # Triton's name, e.g. INT32
    dims: tuple[int, ...] = (1,)
    optional: bool = True
    supported: bool = True  # by the CPU engine; what is not is refused by name


def _group(dtype: str, names: str, *, dims: tuple[int, ...] = (1,), supported: bool = True) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, dtype=dtype, dims=dims, supported=supported) for name in names.split())


LOGITS = "FP32"  # ${logits_datatype} and its like in NVIDIA's template
INPUTS: tuple[TensorSpec, ...] = (
    TensorSpec(name="input_ids", dtype="INT32", dims=(-1,)),
    TensorSpec(name="input_lengths", dtype="INT32", optional=False),
    TensorSpec(name="request_output_len", dtype="INT32", optional=False),
    *_group("BOOL", "stop streaming exclude_input_in_output"),
    *_group("INT32", "end_id pad_id beam_width runtime_top_k min_tokens num_return_sequences"),
    *_group("INT32", "runtime_top_p_reset_ids", supported=False),
    *_group("FP32", "temperature runtime_top_p repetition_penalty presence_penalty frequency_penalty"),
    *_group("FP32", "len_penalty beam_search_diversity_rate"),  # of no effect with one beam, as upstream
    *_group("FP32", "runtime_top_p_min runtime_top_p_decay", supported=False),
    *_group("UINT64", "seed"),
    *_group("BOOL", "early_stopping"),
    *_group("INT32", "stop_words_list bad_words_list", dims=(2, -1)),
    *_group("FP32", "embedding_bias", dims=(-1,)),
    *_group("BOOL", "return_log_probs return_context_logits return_generation_logits", supported=False),
    *_group("BOOL", "return_perf_metrics return_num_input_tokens return_num_output_tokens"),
    *_group(
        "INT32",
        "retention_token_range_starts retention_token_range_ends retention_token_range_priorities "
        "retention_token_range_durations_ms",
        dims=(-1,),
    ),
    *_group("INT32", "retention_decode_priority retention_decode_duration_ms"),
    *_group("INT32", "draft_input_ids", dims=(-1,), supported=False),
    *_group(LOGITS, "draft_logits", dims=(-1, -1), supported=False),
    *_group("FP32", "draft_acceptance_threshold", supported=False),
    *_group("INT32", "lookahead_window_size lookahead_ngram_size lookahead_verification_set_size", supported=False),
    *_group("STRING", "guided_decoding_guide_type guided_decoding_guide", supported=False),
    *_group("UINT64", "lora_task_id", supported=False),
    *_group("FP16", "lora_weights", dims=(-1, -1), supported=False),
    *_group("INT32", "lora_config", dims=(-1, 3), supported=False),
    *_group(LOGITS, "prompt_embedding_table", dims=(-1, -1), supported=False),
    *_group("INT32", "prompt_vocab_size", supported=False),
    *_group("UINT64", "prompt_table_extra_ids", dims=(-1,), supported=False),
    *_group("INT32", "decoder_input_ids", dims=(-1,), supported=False),
    *_group("INT32", "decoder_input_lengths", supported=False),
    *_group(LOGITS, "encoder_input_features", dims=(-1, -1), supported=False),
    *_group("INT32", "encoder_output_lengths", supported=False),
    *_group("BOOL", "cross_attention_mask", dims=(-1, -1), supported=False),
    *_group("FP32", "mrope_rotary_cos_sin", dims=(-1,), supported=False),
    *_group("INT64", "mrope_position_deltas", supported=False),
    *_group("BOOL", "skip_cross_attn_blocks", supported=False),
    *_group("UINT8", "context_phase_params", dims=(-1,), supported=False),
)
OUTPUTS: tuple[TensorSpec, ...] = (
    TensorSpec(name="output_ids", dtype="INT32", dims=(-1, -1)),
    TensorSpec(name="sequence_length", dtype="INT32", dims=(-1,)),
    *_group("FP32", "cum_log_probs", dims=(-1,), supported=False),
    *_group("FP32", "output_log_probs", dims=(-1, -1), supported=False),
    *_group(LOGITS, "context_logits", dims=(-1, -1), supported=False),
    *_group(LOGITS, "generation_logits", dims=(-1, -1, -1), supported=False),
    *_group("INT32", "num_input_tokens num_output_tokens"),
    *_group("INT32", "batch_index", supported=False),
    *_group("INT32", "sequence_index"),
    *_group("INT32", "kv_cache_alloc_new_blocks kv_cache_reused_blocks kv_cache_alloc_total_blocks"),
    *_group("INT64", "arrival_time_ns first_scheduled_time_ns first_token_time_ns last_token_time_ns"),
    *_group("FP32", "acceptance_rate"),
    *_group("INT32", "total_accepted_draft_tokens total_draft_tokens"),
    *_group("UINT8", "context_phase_params", dims=(-1,), supported=False),
)
NUMPY_TYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "UINT64": np.uint64,
    "FP16": np.float16, "FP32": np.float32, "STRING": np.object_,
}  # fmt: skip
_OUTPUT_TYPES = {tensor.name: NUMPY_TYPES[tensor.dtype] for tensor in OUTPUTS}
_BY_NAME = {tensor.name: tensor for tensor in INPUTS}
_RETURNS = ("return_perf_metrics", "return_num_input_tokens", "return_num_output_tokens")


def is_stop(inputs: Inputs) -> bool:
    """True if the request asks to stop the one with its id, not to generate."""
    return bool(_scalar(inputs, "stop", False))


def read_call(inputs: Inputs, *, exclude_input: bool = False, parameters: str = "") -> EngineCall:
    """The call that the tensors of one request spell. Raises ValueError naming the tensor that is wrong.

    `parameters` are the request's, as JSON: a string `cache_salt` parts its KV blocks from those of other salts.
    """
    for name, array in inputs.items():
        _check(name, array)
    if _scalar(inputs, "beam_width", 1) != 1:
        raise UnsupportedError("tensor 'beam_width': this engine has one beam")
    length = int(_scalar(inputs, "input_lengths", 0))
    ids = _ids(inputs.get("input_ids"))
    if not 1 <= length <= len(ids):
        raise ValueError(f"tensor 'input_lengths' is {length}, but input_ids holds {len(ids)}")
    output = int(_scalar(inputs, "request_output_len", 0))
    if output < 1:
        raise ValueError(f"tensor 'request_output_len' must be >= 1, not {output}")
    sequences = int(_scalar(inputs, "num_return_sequences", 1))
    if sequences < 1:
        raise ValueError(f"tensor 'num_return_sequences' must be >= 1, not {sequences}")
    end_id = int(_scalar(inputs, "end_id", -1))
    return EngineCall(
        input_ids=ids[:length],
        output_tokens_max=output,
        streaming=bool(_scalar(inputs, "streaming", False)),
        exclude_input=bool(_scalar(inputs, "exclude_input_in_output", exclude_input)),
        sequences=sequences,
        sampling=_sampling(inputs),
        end_id=None if end_id < 0 else end_id,
        stop_words=_words(inputs, "stop_words_list"),
        bad_words=_words(inputs, "bad_words_list"),
        embedding_bias=tuple(inputs["embedding_bias"].ravel().tolist()) if "embedding_bias" in inputs else (),
        retention=_retention(inputs),
        cache_salt=_salt(parameters),
        returns=frozenset(name for name in _RETURNS if _scalar(inputs, name, False)),
    )


def outputs_of(call: EngineCall, part: OutputPart) -> dict[str, Array]:
    """The tensors of one response. A sequence's last part carries the figures that the call asked for."""
    ids = part.ids if call.streaming or call.exclude_input else call.input_ids + part.ids
    outputs: dict[str, Array] = {
        "output_ids": np.array(ids, np.int32).reshape(1, 1, -1),
        "sequence_length": np.array([[len(ids)]], np.int32),
    }
    numbers: dict[str, int | float] = {}
    if call.sequences > 1:
        numbers["sequence_index"] = part.sequence
    if "return_num_input_tokens" in call.returns:
        numbers["num_input_tokens"] = len(call.input_ids)
    if "return_num_output_tokens" in call.returns:
        numbers["num_output_tokens"] = part.generated_tokens
    figures = part.figures
    if figures is not None and "return_perf_metrics" in call.returns:
        numbers |= {
            "kv_cache_alloc_new_blocks": figures.new_blocks,
            "kv_cache_reused_blocks": figures.reused_blocks,
            "kv_cache_alloc_total_blocks": figures.total_blocks,
            "arrival_time_ns": figures.arrival_ns,
            "first_scheduled_time_ns": figures.first_scheduled_ns,
            "first_token_time_ns": figures.first_token_ns,
            "last_token_time_ns": figures.last_token_ns,
            "acceptance_rate": 0.0,  # nothing is drafted
            "total_accepted_draft_tokens": 0,
            "total_draft_tokens": 0,
        }
    return outputs | {name: np.array([[value]], _OUTPUT_TYPES[name]) for name, value in numbers.items()}


def _check(name: str, array: Array) -> None:
    tensor = _BY_NAME.get(name)
    if tensor is None:
        raise ValueError(f"tensor '{name}' is not one of the engine's inputs")
    if array.shape[:1] != (1,) and array.ndim > 1:
        raise UnsupportedError(f"tensor '{name}' has batch size {array.shape[0]}; send one prompt per request")
    if not tensor.supported and array.size and np.any(array != np.zeros(1, array.dtype)):
        raise UnsupportedError(f"tensor '{name}' asks for something that this engine does not support")


def _scalar(inputs: Inputs, name: str, default: float) -> Any:
    array = inputs.get(name)
    if array is None:
        return default
    if array.size != 1:
        raise ValueError(f"tensor '{name}' must hold one value, not {array.size}")
    return array.reshape(-1)[0].item()


def _ids(array: Array | None) -> Ids:
    return () if array is None else tuple(array.reshape(-1).tolist())


def _sampling(inputs: Inputs) -> EngineSampling:
    try:
        return EngineSampling(
            temperature=_scalar(inputs, "temperature", 1.0),
            top_k=_scalar(inputs, "runtime_top_k", 0),
            top_p=_scalar(inputs, "runtime_top_p", 0.0),
            seed=_scalar(inputs, "seed", 0),
            repetition_penalty=_scalar(inputs, "repetition_penalty", 1.0),
            presence_penalty=_scalar(inputs, "presence_penalty", 0.0),
            frequency_penalty=_scalar(inputs, "frequency_penalty", 0.0),
            min_tokens=_scalar(inputs, "min_tokens", 0),
        )
    except ValueError as error:
        raise ValueError(f"sampling tensors: {error}") from error


def _words(inputs: Inputs, name: str) -> tuple[Ids, ...]:
    """Row 0 holds all ids one after another, row 1 where each word ends, padded with -1."""
    if name not in inputs or not inputs[name].size:
        return ()
    array = inputs[name].reshape(-1, inputs[name].shape[-1])
    if len(array) != 2:
        raise ValueError(f"tensor '{name}' must have the shape [2, n], not {list(inputs[name].shape)}")
    ends = [end for end in array[1].tolist() if end >= 0]
    if ends != sorted(set(ends)) or (ends and not 1 <= ends[0] <= ends[-1] <= array.shape[1]):
        raise ValueError(f"tensor '{name}': the offsets {ends} must rise within 1..{array.shape[1]}")
    flat = array[0].tolist()
    return tuple(tuple(flat[begin:end]) for begin, end in zip([0, *ends], ends, strict=False))


def _retention(inputs: Inputs) -> Retention:
    names = ("starts", "ends", "priorities", "durations_ms")
    columns = [_ids(inputs.get(f"retention_token_range_{name}")) for name in names]
    if len({len(column) for column in columns if column or columns[0]}) > 1:
        sizes = ", ".join(f"{name} {len(column)}" for name, column in zip(names, columns, strict=True))
        raise ValueError(f"tensors 'retention_token_range_*' must have one length: {sizes}")
    try:
        ranges = tuple(
            RetentionRange(token_start=start, token_end=_open(end), priority=priority, duration_s=_open(duration, 1000))
            for start, end, priority, duration in zip(*columns, strict=False)
        )
        return Retention(
            ranges=ranges,
            decode_priority=int(_scalar(inputs, "retention_decode_priority", 35)),
            decode_duration_s=_open(int(_scalar(inputs, "retention_decode_duration_ms", -1)), 1000),
        )
    except ValueError as error:
        raise ValueError(f"retention tensors: {error}") from error


def _salt(parameters: str) -> str | None:
    salt = json.loads(parameters or "{}").get("cache_salt")
    if not isinstance(salt, str | None):
        raise ValueError(f"parameter 'cache_salt' must be a text, not {salt!r}")
    return salt or None


def _open(value: int, unit: int = 1) -> float:
    return inf if value == -1 else value / unit
