"""The types of a call's answer, and of what the cache keeps. Times of the steady clock come as timedelta (nanobind)."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Protocol

class KvCacheMetrics(Protocol):
    num_total_allocated_blocks: int
    num_new_allocated_blocks: int
    num_reused_blocks: int

class TimingMetrics(Protocol):
    arrival_time: timedelta
    first_scheduled_time: timedelta
    first_token_time: timedelta
    last_token_time: timedelta

class RequestPerfMetrics(Protocol):
    @property
    def kv_cache_metrics(self) -> KvCacheMetrics: ...
    @property
    def timing_metrics(self) -> TimingMetrics: ...

class CompletionOutput(Protocol):
    token_ids: list[int]  # accumulating
    finish_reason: str | None  # stop | length | timeout | cancelled
    @property
    def request_perf_metrics(self) -> RequestPerfMetrics | None: ...  # with the last ids, if asked for

class RequestOutput(Protocol):
    @property
    def outputs(self) -> Sequence[CompletionOutput]: ...
    @property
    def finished(self) -> bool: ...
    def abort(self) -> None: ...
    def __aiter__(self) -> AsyncIterator[RequestOutput]: ...

class KvCacheRetentionConfig:
    class TokenRangeRetentionConfig:
        def __init__(
            self, token_start: int, token_end: int | None, priority: int, duration_ms: timedelta | None = None
        ) -> None: ...

    def __init__(
        self,
        token_range_retention_configs: list[TokenRangeRetentionConfig],
        decode_retention_priority: int = 35,
        decode_duration_ms: timedelta | None = None,
    ) -> None: ...
