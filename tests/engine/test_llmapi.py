"""The path over tensorrt_llm.LLM, up to its import: what it would be given, and what its answers become."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.calls import EngineCall, UnsupportedError
from engine.gauges import GAUGES
from engine.llmapi import LlmApiEngine, cut, gauges_of, llm_arguments, retention_arguments, sampling_arguments
from engine.sampling import EngineSampling
from sidecar.inflight.batch import End
from sidecar.inflight.blocks import Retention, RetentionRange
from tests.engine.test_serving import committed

CALL = EngineCall(input_ids=(5, 6, 7), output_tokens_max=9, end_id=2)


def test_without_the_library_the_model_says_what_is_missing() -> None:
    engine = LlmApiEngine(committed(engine="llmapi", gpt_model_path="/models/llama"))
    with pytest.raises(ValueError, match="'engine' is llmapi, but the server has no package tensorrt_llm"):
        engine.start()
    engine.close()


def test_the_parameters_become_the_librarys() -> None:
    arguments = llm_arguments(committed(gpt_model_path="/models/llama", kv_cache_host_memory_bytes="1000"))
    assert arguments["model"] == "/models/llama"
    assert arguments["enable_chunked_prefill"]
    assert arguments["kv_cache_config"] == {"enable_block_reuse": True, "max_tokens": 81_920, "host_cache_size": 1000}
    assert arguments["scheduler_config"] == {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"}
    with pytest.raises(ValueError, match="'gpt_model_path' must name the model"):
        llm_arguments(committed())


def test_a_call_becomes_sampling_parameters() -> None:
    asked = replace(
        CALL, stop_words=((8, 9), (10,)), bad_words=((4,),), sampling=EngineSampling(top_k=40, min_tokens=3)
    )
    arguments = sampling_arguments(asked)
    assert (arguments["max_tokens"], arguments["end_id"], arguments["ignore_eos"]) == (9, 2, False)
    assert (arguments["stop_token_ids"], arguments["bad_token_ids"]) == ([10], [4])
    assert (arguments["top_k"], arguments["top_p"], arguments["min_tokens"]) == (40, None, 3)
    assert sampling_arguments(replace(CALL, end_id=None))["ignore_eos"]


@pytest.mark.parametrize("asked", [replace(CALL, bad_words=((1, 2),)), replace(CALL, embedding_bias=(0.5,))])
def test_what_cannot_be_passed_on_is_refused_by_name(asked: EngineCall) -> None:
    with pytest.raises(UnsupportedError, match=r"tensor '(bad_words_list|embedding_bias)'"):
        sampling_arguments(asked)


def test_retention_is_passed_on_in_its_units() -> None:
    span = RetentionRange(token_start=0, token_end=64, priority=90, duration_s=2.0)
    assert retention_arguments(Retention(ranges=(span,), decode_priority=10)) == {
        "token_range_retention_configs": [{"token_start": 0, "token_end": 64, "priority": 90, "duration_ms": 2000.0}],
        "decode_retention_priority": 10,
        "decode_duration_ms": None,
    }


@pytest.mark.parametrize(
    ("ids", "finish", "told"),
    [
        ((11, 12), None, ((11, 12), None)),
        ((11, 12), "length", ((11, 12), End.LENGTH)),
        ((11, 2), "stop", ((11,), End.END_ID)),
        ((11,), "stop", ((11,), End.END_ID)),
        ((11, 8, 9, 12), None, ((11, 8, 9), End.STOP_WORD)),
        ((9, 12), "length", ((9,), End.STOP_WORD)),
        ((11,), "cancelled", ((11,), End.STOPPED)),
    ],
)
def test_an_answer_is_cut_where_the_contract_ends_it(
    ids: tuple[int, ...], finish: str | None, told: tuple[tuple[int, ...], End | None]
) -> None:
    asked = replace(CALL, input_ids=(5, 8), stop_words=((8, 9),))
    assert cut(asked, ids, finish, 0) == told


def test_statistics_fill_every_gauge() -> None:
    stats = {
        "iter": 7, "numActiveRequests": 5, "maxNumActiveRequests": 64,
        "kvCacheStats": {"maxNumBlocks": 100, "usedNumBlocks": 25, "freeNumBlocks": 75, "tokensPerBlock": 32},
        "inflightBatchingStats": {"numScheduledRequests": 3, "numContextRequests": 1, "numCtxTokens": 40},
    }  # fmt: skip
    values = gauges_of(stats)
    assert set(values) == {(family, name) for family, (_, names) in GAUGES.items() for name in names}
    assert values["nv_trt_llm_request_metrics", "waiting"] == 2
    assert values["nv_trt_llm_kv_cache_block_metrics", "fraction"] == 0.25
