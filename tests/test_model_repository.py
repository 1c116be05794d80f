"""Our text models and NVIDIA's can be exchanged one by one: names, types and shapes of their tensors agree.

What NVIDIA's have is written down from triton_backend/all_models/inflight_batcher_llm of TensorRT-LLM 1.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from engine.contract import INPUTS, OUTPUTS

TEXT = Path(__file__).parent.parent / "model_repository/text"
Tensors = dict[str, tuple[str, tuple[int, ...]]]

# Inputs with a star are required. Tensors for images, prompt tables and encoders are left out: we have none of them.
NVIDIA: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "preprocessing": (
        {
            "QUERY": "*STRING 1",
            "REQUEST_OUTPUT_LEN": "*INT32 1",
            "BAD_WORDS_DICT": "STRING -1",
            "STOP_WORDS_DICT": "STRING -1",
            "EMBEDDING_BIAS_WORDS": "STRING -1",
            "EMBEDDING_BIAS_WEIGHTS": "FP32 -1",
            "END_ID": "INT32 1",
            "PAD_ID": "INT32 1",
        },
        {
            "INPUT_ID": "INT32 -1",
            "REQUEST_INPUT_LEN": "INT32 1",
            "BAD_WORDS_IDS": "INT32 2 -1",
            "STOP_WORDS_IDS": "INT32 2 -1",
            "EMBEDDING_BIAS": "FP32 -1",
            "REQUEST_OUTPUT_LEN": "INT32 -1",
            "OUT_END_ID": "INT32 1",
            "OUT_PAD_ID": "INT32 1",
        },
    ),
    "postprocessing": ({"TOKENS_BATCH": "*INT32 -1 -1", "SEQUENCE_LENGTH": "*INT32 -1"}, {"OUTPUT": "STRING -1"}),
    "ensemble": (
        {
            "text_input": "*STRING 1",
            "max_tokens": "*INT32 1",
            **dict.fromkeys(("bad_words", "stop_words"), "STRING -1"),
            **dict.fromkeys(("exclude_input_in_output", "stream"), "BOOL 1"),
            **dict.fromkeys(("return_perf_metrics", "return_num_input_tokens", "return_num_output_tokens"), "BOOL 1"),
            **dict.fromkeys(("end_id", "pad_id", "top_k", "min_tokens", "beam_width"), "INT32 1"),
            "num_return_sequences": "INT32 1",
            **dict.fromkeys(("top_p", "temperature", "length_penalty", "repetition_penalty"), "FP32 1"),
            **dict.fromkeys(("presence_penalty", "frequency_penalty"), "FP32 1"),
            "seed": "UINT64 1",
        },
        {
            "text_output": "STRING -1",
            **dict.fromkeys(("num_input_tokens", "num_output_tokens", "sequence_index", "batch_index"), "INT32 1"),
            **dict.fromkeys(("kv_cache_alloc_new_blocks", "kv_cache_reused_blocks"), "INT32 1"),
            "kv_cache_alloc_total_blocks": "INT32 1",
            **dict.fromkeys(("arrival_time_ns", "first_scheduled_time_ns"), "INT64 1"),
            **dict.fromkeys(("first_token_time_ns", "last_token_time_ns"), "INT64 1"),
            "acceptance_rate": "FP32 1",
            **dict.fromkeys(("total_accepted_draft_tokens", "total_draft_tokens"), "INT32 1"),
        },
    ),
}
PARAMETERS = {
    "preprocessing": {"tokenizer_dir", "add_special_tokens", "end_ids"},
    "postprocessing": {"tokenizer_dir", "skip_special_tokens", "end_ids"},
    "ensemble": set(),
}
MODELS = sorted(NVIDIA)


def ours(model: str) -> Any:
    return text_format.Parse((TEXT / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def tensors(found: Any) -> Tensors:
    names = model_config_pb2.DataType.Name
    return {each.name: (names(each.data_type).removeprefix("TYPE_"), tuple(each.dims)) for each in found}


def written(table: dict[str, str]) -> Tensors:
    words = {name: line.removeprefix("*").split() for name, line in table.items()}
    return {name: (each[0], tuple(map(int, each[1:]))) for name, each in words.items()}


def fit(one: tuple[str, tuple[int, ...]], other: tuple[str, tuple[int, ...]]) -> bool:
    """True if Triton lets one tensor feed the other: -1 takes any size."""
    sizes = zip(one[1], other[1], strict=False)
    return one[0] == other[0] and len(one[1]) == len(other[1]) and all(a == b or -1 in (a, b) for a, b in sizes)


@pytest.mark.parametrize("model", MODELS)
def test_each_of_our_tensors_is_one_of_nvidias(model: str) -> None:
    config = ours(model)
    for found, table in ((config.input, NVIDIA[model][0]), (config.output, NVIDIA[model][1])):
        theirs = written(table)
        assert {
            name: tensor for name, tensor in tensors(found).items() if not fit(tensor, theirs.get(name, ("", ())))
        } == {}
    assert config.parameters.keys() == PARAMETERS[model]


@pytest.mark.parametrize("model", MODELS)
def test_who_calls_nvidias_model_can_call_ours(model: str) -> None:
    required = {name for name, line in NVIDIA[model][0].items() if line.startswith("*")}
    assert {each.name for each in ours(model).input if not each.optional} == required


def test_our_ensemble_feeds_nvidias_models_what_they_need_and_reads_what_they_give() -> None:
    inside: Tensors = tensors(ours("ensemble").input)
    engine = ({each.name: (each.dtype, each.dims) for each in side} for side in (INPUTS, OUTPUTS))
    known = {model: (written(table[0]), written(table[1])) for model, table in NVIDIA.items()}
    known["tensorrt_llm"] = (next(engine), next(engine))
    for step in ours("ensemble").ensemble_scheduling.step:
        takes, gives = known[step.model_name]
        table = NVIDIA.get(step.model_name, ({}, {}))[0]
        assert {name for name, line in table.items() if line.startswith("*")} <= set(step.input_map)
        assert [name for name, source in step.input_map.items() if not fit(inside[source], takes[name])] == []
        inside |= {name: gives[source] for source, name in step.output_map.items()}
    assert all(fit(inside[name], tensor) for name, tensor in tensors(ours("ensemble").output).items())
