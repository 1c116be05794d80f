"""The same engine contract over `tensorrt_llm.LLM`, for releases without the engine backend (needs a GPU).

Token ids go in and come out, so a resumed call finds its KV blocks; upstream's own llmapi model takes text only. The
library cannot be installed where this project is tested. There a stand-in takes its place (tests/fakes/trtllm.py),
which misbehaves as upstream does, and mypy checks the calls against stubs/tensorrt_llm.

Words of several tokens that end an answer are watched for here, because the library takes them only as text.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from math import inf
from threading import Thread
from typing import TYPE_CHECKING, Any

from engine.calls import Deliver, EngineCall, Figures, OutputPart
from engine.gauges import GAUGES, Gauges
from engine.llmapi_arguments import (
    LibrarySampler,
    SamplingArguments,
    llm_arguments,
    prepare_process,
    sampler_of,
    sampling_arguments,
)
from engine.parameters import EngineParameters
from sidecar.inflight.batch import End
from sidecar.inflight.blocks import RETENTION_DEFAULT, Ids, Retention

if TYPE_CHECKING:
    import tensorrt_llm
    from tensorrt_llm.llmapi import CompletionOutput, KvCacheRetentionConfig, RequestOutput

logger = logging.getLogger(__name__)
STATS_TIMEOUT_S = 2.0  # without a statistic: the stream of them ends, and each further one ends at once
STATS_PERIOD_S = 0.2  # from the end of one stream to the next; the library itself looks no more often


class LlmApiEngine:
    """One `LLM` and one event loop, in a thread of their own."""

    def __init__(self, parameters: EngineParameters) -> None:
        self.gauges = Gauges()
        self.overruns = 0  # nothing is paced here
        self.broken: str | None = None
        self._parameters = parameters
        self._arguments = llm_arguments(parameters)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="llmapi-engine", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._resident = 0  # calls in the library
        self._watching = False  # whether the statistics are read
        self._llm: tensorrt_llm.LLM | None = None
        self._sampler: LibrarySampler | None = None

    def start(self) -> None:
        """Load the model. Raises ValueError if tensorrt_llm is not there; its own errors pass through."""
        prepare_process(os.environ, self._parameters)
        try:
            import tensorrt_llm
        except ImportError as error:
            raise ValueError("parameter 'engine' is llmapi, but the server has no package tensorrt_llm") from error
        self._sampler = sampler_of(tensorrt_llm.__version__, self._parameters)
        self._llm = tensorrt_llm.LLM(**self._arguments, sampler_type=self._sampler.sampler_type)
        self._thread.start()

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
        assert self._sampler is not None  # the server submits nothing before the model is loaded
        arguments = sampling_arguments(call, self._sampler)
        running: list[RequestOutput] = []  # filled in the loop; a stop comes after it: the loop keeps the order
        self._loop.call_soon_threadsafe(self._begin, call, arguments, deliver, running)

        def stop() -> None:
            self._loop.call_soon_threadsafe(_abort_all, running)

        return stop

    def _begin(
        self, call: EngineCall, arguments: SamplingArguments, deliver: Deliver, running: list[RequestOutput]
    ) -> None:
        """Hand the call to the library, inside the loop: only there does it give outputs that can be awaited."""
        import tensorrt_llm

        assert self._llm is not None
        try:
            output = self._llm.generate_async(
                {"prompt_token_ids": list(call.input_ids)},
                sampling_params=tensorrt_llm.SamplingParams(**arguments),
                streaming=True,
                kv_cache_retention_config=_retention(call.retention),
                cache_salt=call.cache_salt,
            )
        except Exception as error:  # whatever the library raised concerns this call alone
            refused = isinstance(error, ValueError)  # how it says that a prompt is too long, or a value out of range
            deliver(OutputPart(ids=(), final=True, error=f"the engine refused the call: {error}", refused=refused))
            return
        running.append(output)
        self._resident += 1
        self._spawn(self._relay(call, output, deliver), "relay")
        if not self._watching:  # before the first call the library has no statistics, and says so each time
            self._watching = True
            self._spawn(self._watch_stats(), "statistics")

    async def _relay(self, call: EngineCall, running: RequestOutput, deliver: Deliver) -> None:
        """Turn accumulating outputs into parts; exactly one of them is final, whatever happens."""
        try:
            await self._relay_parts(call, running, deliver)
        except Exception as error:  # whatever the library raised concerns this call alone
            deliver(OutputPart(ids=(), final=True, error=f"the engine failed: {error}"))
        finally:
            self._resident -= 1
            if not self._resident:
                self.gauges.rest()

    async def _relay_parts(self, call: EngineCall, running: RequestOutput, deliver: Deliver) -> None:
        told = [0] * call.sequences
        live = set(range(call.sequences))
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
                    deliver(
                        OutputPart(
                            ids=new,
                            sequence=index,
                            end=end,
                            final=not live,
                            generated_tokens=len(ids),
                            figures=figures_of(completion) if end is not None else None,
                        )
                    )
            if not live:
                _abort(running)  # where a stop word of several tokens ended it for us, and not for the library
                return
        deliver(OutputPart(ids=(), final=True, error="the engine ended the stream without a finish reason"))

    async def _watch_stats(self) -> None:
        """Keep the gauges at the last iteration's statistics (enable_iter_perf_stats) until cancelled."""
        assert self._llm is not None
        told = ""
        while True:
            try:
                async for stats in self._llm.get_stats_async(timeout=STATS_TIMEOUT_S):
                    self.gauges.take(gauges_of(stats), stats["iter"])
                    if not self._resident:  # a statistic that was on its way when the last call ended
                        self.gauges.rest()
            except Exception as error:  # whatever the library raised: without gauges calls go on
                if told != repr(error):
                    told = repr(error)
                    logger.warning("the engine's statistics cannot be read, and are tried again: %s", told)
            await asyncio.sleep(STATS_PERIOD_S)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _abort_all(running: list[RequestOutput]) -> None:
    for each in running:
        _abort(each)


def _abort(running: RequestOutput) -> None:
    """Stop the call if it runs: of an abort after its end the library keeps the id for ever (TRT-LLM #8131)."""
    if not running.finished:
        running.abort()


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


def figures_of(completion: CompletionOutput) -> Figures | None:
    """Return what the last output of the call says of its time and blocks; None unless that was asked for."""
    metrics = completion.request_perf_metrics
    if metrics is None:
        return None
    cache, timing = metrics.kv_cache_metrics, metrics.timing_metrics
    return Figures(
        new_blocks=cache.num_new_allocated_blocks,
        reused_blocks=cache.num_reused_blocks,
        total_blocks=cache.num_total_allocated_blocks,
        arrival_ns=_ns(timing.arrival_time),
        first_scheduled_ns=_ns(timing.first_scheduled_time),
        first_token_ns=_ns(timing.first_token_time),
        last_token_ns=_ns(timing.last_token_time),
    )


def _ns(time: timedelta) -> int:
    return time // timedelta(microseconds=1) * 1000


def _retention(retention: Retention) -> KvCacheRetentionConfig | None:
    if retention == RETENTION_DEFAULT:
        return None
    from tensorrt_llm.llmapi import KvCacheRetentionConfig

    return KvCacheRetentionConfig(
        token_range_retention_configs=[
            KvCacheRetentionConfig.TokenRangeRetentionConfig(
                token_start=span.token_start,
                token_end=None if span.token_end == inf else int(span.token_end),
                priority=span.priority,
                duration_ms=_duration(span.duration_s),
            )
            for span in retention.ranges
        ],
        decode_retention_priority=retention.decode_priority,
        decode_duration_ms=_duration(retention.decode_duration_s),
    )


def _duration(seconds: float) -> timedelta | None:
    """None = never over."""
    return None if seconds == inf else timedelta(seconds=seconds)


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
