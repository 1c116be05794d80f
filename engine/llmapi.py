"""The same engine contract over `tensorrt_llm.LLM`, for releases without the engine backend (needs a GPU).

Token ids go in and come out, so a resumed call finds its KV blocks; upstream's own llmapi model takes text only. The
library cannot be installed where this project is tested: everything up to its import is, nothing behind it. Names and
meanings of arguments: TensorRT-LLM 1.1 and 1.2, tensorrt_llm/llmapi/llm.py, llm_args.py and sampling_params.py.

Words of several tokens that end an answer are watched for here, because the library takes them only as text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from math import inf
from threading import Thread
from typing import Any, Protocol

from engine.calls import Deliver, EngineCall, OutputPart, UnsupportedError
from engine.gauges import GAUGES, Gauges
from engine.parameters import EngineParameters
from sidecar.inflight.batch import End
from sidecar.inflight.blocks import RETENTION_DEFAULT, Ids, Retention

STATS_TIMEOUT_S = 2.0


class Completion(Protocol):
    """One sequence of tensorrt_llm's RequestOutput; ids accumulate."""

    token_ids: list[int]
    finish_reason: str | None  # stop | length | timeout | cancelled


class StreamedOutput(Protocol):
    """tensorrt_llm's RequestOutput of a streamed request."""

    outputs: list[Completion]

    def abort(self) -> None: ...
    def __aiter__(self) -> AsyncIterator[StreamedOutput]: ...


class LlmApiEngine:
    """One `LLM` and one event loop, in a thread of their own."""

    def __init__(self, parameters: EngineParameters) -> None:
        self.gauges = Gauges()
        self.overruns = 0  # nothing is paced here
        self.broken: str | None = None
        self._arguments = llm_arguments(parameters)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="llmapi-engine", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._llm: Any = None

    def start(self) -> None:
        """Load the model. Raises ValueError if tensorrt_llm is not there; its own errors pass through."""
        try:
            import tensorrt_llm
        except ImportError as error:
            raise ValueError("parameter 'engine' is llmapi, but the server has no package tensorrt_llm") from error
        self._llm = tensorrt_llm.LLM(**self._arguments)
        self._thread.start()
        self._loop.call_soon_threadsafe(self._spawn, self._watch_stats())

    def close(self) -> None:
        """Abort what runs, unload the model, end the thread."""
        if self._llm is not None:
            asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._llm.shutdown()
        self._loop.close()

    def submit(self, call: EngineCall, deliver: Deliver) -> Callable[[], None]:
        """Start the call, and give the function that stops it. Raises ValueError for what cannot be passed on."""
        arguments = sampling_arguments(call)
        running: list[StreamedOutput] = []  # filled in the loop; a stop comes after it: the loop keeps the order
        self._loop.call_soon_threadsafe(self._begin, call, arguments, deliver, running)

        def stop() -> None:
            self._loop.call_soon_threadsafe(_abort, running)

        return stop

    def _begin(
        self, call: EngineCall, arguments: dict[str, Any], deliver: Deliver, running: list[StreamedOutput]
    ) -> None:
        """Hand the call to the library, inside the loop: only there does it give outputs that can be awaited."""
        import tensorrt_llm

        try:
            output = self._llm.generate_async(
                {"prompt_token_ids": list(call.input_ids)},
                sampling_params=tensorrt_llm.SamplingParams(**arguments),
                streaming=True,
                kv_cache_retention_config=_retention(call.retention),
            )
        except Exception as error:  # whatever the library raised concerns this call alone
            refused = isinstance(error, ValueError)  # how it says that a prompt is too long, or a value out of range
            deliver(OutputPart(ids=(), final=True, error=f"the engine refused the call: {error}", refused=refused))
            return
        running.append(output)
        self._spawn(self._relay(call, output, deliver))

    async def _relay(self, call: EngineCall, running: StreamedOutput, deliver: Deliver) -> None:
        """Turn accumulating outputs into parts; exactly one of them is final, whatever happens."""
        told = [0] * call.sequences
        live = set(range(call.sequences))
        try:
            async for output in running:
                for index in sorted(live):
                    completion = output.outputs[index]
                    ids, end = cut(call, tuple(completion.token_ids), completion.finish_reason, told[index])
                    if end is not None:
                        live.discard(index)
                        self.gauges.lengths.append((len(call.input_ids), len(ids)))
                    if end is not None or (call.streaming and len(ids) > told[index]):
                        new = ids[told[index] :] if call.streaming else ids
                        told[index] = len(ids)
                        deliver(OutputPart(ids=new, sequence=index, end=end, final=not live, generated_tokens=len(ids)))
                if not live:
                    running.abort()  # a stop word of several tokens ended it for us, not for the library
                    return
            deliver(OutputPart(ids=(), final=True, error="the engine ended the stream without a finish reason"))
        except Exception as error:  # whatever the library raised concerns this call alone
            deliver(OutputPart(ids=(), final=True, error=f"the engine failed: {error}"))

    async def _watch_stats(self) -> None:
        """Keep the gauges at the last iteration's statistics (enable_iter_perf_stats)."""
        while True:
            async for stats in self._llm.get_stats_async(timeout=STATS_TIMEOUT_S):
                self.gauges.values = gauges_of(stats)
                self.gauges.iterations = stats["iter"]
            await asyncio.sleep(0)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work, name=work.__name__)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _abort(running: list[StreamedOutput]) -> None:
    for each in running:
        each.abort()


def llm_arguments(parameters: EngineParameters) -> dict[str, Any]:
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
    if fraction := parameters.text("kv_cache_free_gpu_mem_fraction", ""):
        cache["free_gpu_memory_fraction"] = float(fraction)
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


def sampling_arguments(call: EngineCall) -> dict[str, Any]:
    """The keyword arguments of `SamplingParams`. Raises UnsupportedError naming the tensor that cannot be passed on."""
    if any(len(word) > 1 for word in call.bad_words):
        raise UnsupportedError("tensor 'bad_words_list': words of several tokens cannot be passed to tensorrt_llm")
    if call.embedding_bias:
        raise UnsupportedError("tensor 'embedding_bias' is not passed to tensorrt_llm")
    sampling = call.sampling
    return {
        "max_tokens": call.output_tokens_max,
        "end_id": -1 if call.end_id is None else call.end_id,
        "pad_id": -1 if call.end_id is None else call.end_id,
        "ignore_eos": call.end_id is None,
        "n": call.sequences,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or None,
        "top_p": sampling.top_p or None,
        "seed": sampling.seed,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "min_tokens": sampling.min_tokens or None,
        "stop_token_ids": [word[0] for word in call.stop_words if len(word) == 1] or None,
        "bad_token_ids": [word[0] for word in call.bad_words] or None,
        "include_stop_str_in_output": True,  # the engine contract: what ended an answer stands in it
        "detokenize": False,
    }


def cut(call: EngineCall, ids: Ids, finish_reason: str | None, checked: int) -> tuple[Ids, End | None]:
    """The ids up to where the answer ends, and why it ends, if it does. The first `checked` ids hold no end."""
    context = call.input_ids + ids
    for end in range(checked + 1, len(ids) + 1):
        upto = context[: len(call.input_ids) + end]
        if any(word and upto[-len(word) :] == word for word in call.stop_words):
            return ids[:end], End.STOP_WORD
    match finish_reason:
        case None:
            return ids, None
        case "length":
            return ids, End.LENGTH
        case "stop":  # no stop word was found, so it was the end id; only some releases leave it out, as the C++ does
            return (ids[:-1] if call.end_id is not None and ids[-1:] == (call.end_id,) else ids), End.END_ID
        case _:  # cancelled, timeout
            return ids, End.STOPPED


def retention_arguments(retention: Retention) -> dict[str, Any]:
    """The keyword arguments of `KvCacheRetentionConfig` and of its ranges. In milliseconds, None = never over."""
    return {
        "token_range_retention_configs": [
            {
                "token_start": span.token_start,
                "token_end": None if span.token_end == inf else int(span.token_end),
                "priority": span.priority,
                "duration_ms": _milliseconds(span.duration_s),
            }
            for span in retention.ranges
        ],
        "decode_retention_priority": retention.decode_priority,
        "decode_duration_ms": _milliseconds(retention.decode_duration_s),
    }


def _milliseconds(seconds: float) -> float | None:
    return None if seconds == inf else seconds * 1000


def _retention(retention: Retention) -> Any:
    if retention == RETENTION_DEFAULT:
        return None
    from datetime import timedelta

    from tensorrt_llm.llmapi import KvCacheRetentionConfig

    arguments = retention_arguments(retention)

    def timed(values: dict[str, Any], key: str) -> dict[str, Any]:
        duration_ms = values[key]
        return {**values, key: None if duration_ms is None else timedelta(milliseconds=duration_ms)}

    arguments["token_range_retention_configs"] = [
        KvCacheRetentionConfig.TokenRangeRetentionConfig(**timed(span, "duration_ms"))
        for span in arguments["token_range_retention_configs"]
    ]
    return KvCacheRetentionConfig(**timed(arguments, "decode_duration_ms"))


def gauges_of(stats: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """The gauges of one iteration's statistics (IterationStats as JSON, executor/types.h). What is missing is 0."""
    batch: Mapping[str, Any] = stats.get("inflightBatchingStats") or {}
    cache: Mapping[str, Any] = stats.get("kvCacheStats") or {}
    active, scheduled = stats.get("numActiveRequests", 0), batch.get("numScheduledRequests", 0)
    most, used = cache.get("maxNumBlocks", 0), cache.get("usedNumBlocks", 0)
    columns: dict[str, tuple[float, ...]] = {
        "nv_trt_llm_request_metrics": (
            *(active, stats.get("maxNumActiveRequests", 0), scheduled, batch.get("numContextRequests", 0)),
            max(0, active - scheduled),
        ),
        "nv_trt_llm_runtime_memory_metrics": tuple(
            stats.get(key, 0) for key in ("cpuMemUsage", "gpuMemUsage", "pinnedMemUsage")
        ),
        "nv_trt_llm_kv_cache_block_metrics": (
            *(most, cache.get("freeNumBlocks", 0), used, cache.get("tokensPerBlock", 0), cache.get("reusedBlocks", 0)),
            used / most if most else 0.0,
        ),
        "nv_trt_llm_inflight_batcher_metrics": (
            *(batch.get("numCtxTokens", 0), batch.get("numGenRequests", 0), batch.get("microBatchId", 0)),
            batch.get("numPausedRequests", 0),
        ),
        "nv_trt_llm_general_metrics": (0.0, stats.get("iter", 0)),
    }
    return {
        (family, name): float(value)
        for family, column in columns.items()
        for name, value in zip(GAUGES[family][1], column, strict=True)
    }
