"""What engine/llmapi.py calls of TensorRT-LLM's LLM API (1.1 to 1.3), with upstream's names, so that mypy checks the
calls: the library itself cannot be installed without a GPU's drivers."""

from collections.abc import AsyncIterable, Mapping
from typing import Any

from tensorrt_llm.llmapi import KvCacheRetentionConfig, RequestOutput

__version__: str

class SamplingParams:
    def __init__(
        self,
        *,
        end_id: int | None = None,
        pad_id: int | None = None,
        max_tokens: int = 32,
        bad_token_ids: list[int] | None = None,
        stop_token_ids: list[int] | None = None,
        include_stop_str_in_output: bool = False,
        n: int = 1,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        min_tokens: int | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        return_perf_metrics: bool = False,
        ignore_eos: bool = False,
        detokenize: bool = True,
    ) -> None: ...

class LLM:
    def __init__(
        self,
        *,
        model: str,
        backend: str | None = None,
        tensor_parallel_size: int = 1,
        max_batch_size: int | None = None,
        max_num_tokens: int | None = None,
        max_seq_len: int | None = None,
        enable_chunked_prefill: bool = False,
        enable_iter_perf_stats: bool = False,
        sampler_type: str = "auto",
        kv_cache_config: Mapping[str, Any] = ...,
        scheduler_config: Mapping[str, Any] = ...,
    ) -> None: ...
    def generate_async(
        self,
        inputs: Mapping[str, list[int]],
        sampling_params: SamplingParams | None = None,
        *,
        streaming: bool = False,
        kv_cache_retention_config: KvCacheRetentionConfig | None = None,
        cache_salt: str | None = None,
    ) -> RequestOutput: ...
    def get_stats_async(self, timeout: float | None = 2) -> AsyncIterable[dict[str, Any]]: ...
    def shutdown(self) -> None: ...
