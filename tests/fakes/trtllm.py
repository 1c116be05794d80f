"""A stand-in of the package tensorrt_llm that misbehaves as upstream does. Its signatures are those of stubs/.

Upstream's habits, from executor/executor.py, result.py, base_worker.py and sampling_params.py: no statistics before the
first call, and a stream of them that ends after an idle time and from then on at once; an abort after the end keeps the
id for ever; greedy only where no sampling is set; fields that a sampler ignores without a word; ids that accumulate,
several in a step; figures with the last ids alone, and only if asked for.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from queue import SimpleQueue
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest


class SamplingParams:
    """Whatever it is given, as attributes; what it is not given is None or upstream's default."""

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
    ) -> None:
        self.given = {name: value for name, value in locals().items() if name != "self"}
        self.n, self.return_perf_metrics = n, return_perf_metrics
        unset = temperature is None and top_p is None and top_k is None
        self.greedy = unset or top_k == 1 or top_p == 0 or temperature == 0
        if n > 1 and self.greedy:
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns.")


class KvCacheRetentionConfig:
    """What the cache keeps, as given."""

    @dataclass
    class TokenRangeRetentionConfig:
        token_start: int
        token_end: int | None
        priority: int
        duration_ms: timedelta | None = None

    def __init__(
        self,
        token_range_retention_configs: list[TokenRangeRetentionConfig],
        decode_retention_priority: int = 35,
        decode_duration_ms: timedelta | None = None,
    ) -> None:
        self.given = (token_range_retention_configs, decode_retention_priority, decode_duration_ms)


@dataclass
class FakeCompletion:
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    request_perf_metrics: Any = None


class FakeOutput:
    """One call. The test feeds it; each step gives the whole output so far."""

    def __init__(self, llm: LLM, params: SamplingParams, given: dict[str, Any]) -> None:
        self.params, self.given = params, given
        self.outputs = [FakeCompletion() for _ in range(params.n)]
        self.finished = False
        self.aborts = 0
        self.late_aborts = 0  # each is an id that is kept for ever
        self._llm = llm
        self._loop = asyncio.get_running_loop()
        self._steps: asyncio.Queue[Exception | None] = asyncio.Queue()

    def give(self, *ids: int, index: int = 0, finish: str | None = None, error: Exception | None = None) -> None:
        """Add ids to one sequence, in one step, and end it if `finish` says why. From any thread."""
        self._loop.call_soon_threadsafe(self._give, ids, index, finish, error)

    def _give(self, ids: tuple[int, ...], index: int, finish: str | None, error: Exception | None) -> None:
        completion = self.outputs[index]
        completion.token_ids.extend(ids)
        completion.finish_reason = finish
        self.finished = error is not None or all(each.finish_reason for each in self.outputs)
        if finish and self.params.return_perf_metrics:
            times = {f"{name}_time": timedelta(microseconds=at) for at, name in enumerate(TIMES, 5)}
            blocks = {"num_total_allocated_blocks": 4, "num_new_allocated_blocks": 3, "num_reused_blocks": 7}
            completion.request_perf_metrics = SimpleNamespace(
                kv_cache_metrics=SimpleNamespace(**blocks), timing_metrics=SimpleNamespace(**times)
            )
        self._steps.put_nowait(error)

    def abort(self) -> None:
        if self.finished:
            self.late_aborts += 1
        self.aborts += 1
        for index, each in enumerate(self.outputs):
            if each.finish_reason is None:
                self._give((), index, "cancelled", None)

    async def __aiter__(self) -> AsyncIterator[FakeOutput]:
        while True:
            if (error := await self._steps.get()) is not None:
                raise error
            yield self


TIMES = ("arrival", "first_scheduled", "first_token", "last_token")


class LLM:
    """The model. The test finds the last one made in `made`, its calls in `calls`, and feeds `statistics`."""

    made: ClassVar[list[LLM]] = []

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
        kv_cache_config: Mapping[str, Any] = {},
        scheduler_config: Mapping[str, Any] = {},
    ) -> None:
        self.given = {name: value for name, value in locals().items() if name != "self"}
        self.calls: SimpleQueue[FakeOutput] = SimpleQueue()
        self.looks: SimpleQueue[tuple[float, bool]] = SimpleQueue()  # when statistics were asked for, and if any exist
        self.ignored: list[str] = []  # fields of calls that the sampler did not obey
        self.statistics: list[dict[str, Any] | Exception] = []
        self._exist = False
        self._done = False
        LLM.made.append(self)

    def generate_async(
        self,
        inputs: Mapping[str, list[int]],
        sampling_params: SamplingParams | None = None,
        *,
        streaming: bool = False,
        kv_cache_retention_config: KvCacheRetentionConfig | None = None,
        cache_salt: str | None = None,
    ) -> FakeOutput:
        assert sampling_params is not None
        assert streaming
        self._exist, self._done = True, False
        if self.given["sampler_type"] != "TRTLLMSampler":
            neutral = {"seed": None, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
            self.ignored += [name for name, value in neutral.items() if sampling_params.given[name] != value]
        given = {"ids": inputs["prompt_token_ids"], "retention": kv_cache_retention_config, "salt": cache_salt}
        output = FakeOutput(self, sampling_params, given)
        self.calls.put(output)
        return output

    async def get_stats_async(self, timeout: float | None = 2) -> AsyncIterator[dict[str, Any]]:
        """Give the statistics that there are, then end: as upstream's once nothing came for `timeout`."""
        assert timeout
        self.looks.put((asyncio.get_running_loop().time(), self._exist))
        while self._exist and not self._done and self.statistics:
            each = self.statistics.pop(0)
            if isinstance(each, Exception):
                raise each
            yield each
        self._done = True

    def shutdown(self) -> None:
        pass


def install(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Let `import tensorrt_llm` give the stand-in, as this version of the library."""
    library, llmapi = ModuleType("tensorrt_llm"), ModuleType("tensorrt_llm.llmapi")
    library.__dict__.update(LLM=LLM, SamplingParams=SamplingParams, llmapi=llmapi, __version__=version)
    llmapi.__dict__.update(KvCacheRetentionConfig=KvCacheRetentionConfig)
    monkeypatch.setitem(sys.modules, "tensorrt_llm", library)
    monkeypatch.setitem(sys.modules, "tensorrt_llm.llmapi", llmapi)
