"""The figures that the engine model exports, with the names and the habits of TensorRT-LLM's Triton backend.

Families and labels from custom_metrics_reporter.cc. Habits kept: the gauges hold the last iteration's sample and move
only while iterations run, once more as the engine goes idle; `waiting` is active − scheduled, so requests in the
executor's queue are in no gauge.
Two counters are ours: iterations, and iterations that took longer than the paced profile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.inflight.batch import Iteration
from sidecar.inflight.batcher import Batcher

# family → (label, its values)
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "nv_trt_llm_request_metrics": ("request_type", ("active", "max", "scheduled", "context", "waiting")),
    "nv_trt_llm_runtime_memory_metrics": ("memory_type", ("cpu", "gpu", "pinned")),
    "nv_trt_llm_kv_cache_block_metrics": (
        "kv_cache_block_type",
        ("max", "free", "used", "tokens_per", "reused", "fraction"),
    ),
    "nv_trt_llm_inflight_batcher_metrics": (
        "inflight_batcher_specific_metric",
        ("total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"),
    ),
    "nv_trt_llm_general_metrics": ("general_type", ("timestamp", "iteration_counter")),
}
BUSY = (  # 0 in an engine at rest
    *(("nv_trt_llm_request_metrics", name) for name in ("active", "scheduled", "context", "waiting")),
    *(("nv_trt_llm_inflight_batcher_metrics", name) for name in ("total_context_tokens", "generation_requests")),
)
HISTOGRAMS: dict[str, str] = {  # label response_metric_type
    "nv_llm_input_token_len": "total_input_tokens",
    "nv_llm_output_token_len": "total_output_tokens",
}
BUCKETS = (10.0, 50.0, 100.0, 500.0, 1000.0)
COUNTERS = {
    "backfill_engine_iterations_total": "iterations run",
    "backfill_engine_pacing_overruns_total": "iterations whose arithmetic took longer than the paced profile",
}


@dataclass(slots=True)
class Gauges:
    """The last iteration's sample, and the lengths of what ended since they were taken."""

    values: dict[tuple[str, str], float] = field(default_factory=dict)
    iterations: int = 0
    samples: int = 0  # taken
    lengths: list[tuple[int, int]] = field(default_factory=list)  # prompt tokens, output tokens
    wall_clock: Callable[[], float] = time.time

    def sample(self, batcher: Batcher, step: Iteration) -> None:
        """Take the sample of one iteration."""
        pool, scheduled = batcher.pool, len(step.decoding) + len(step.chunks)
        used = pool.blocks_max - pool.free
        columns: dict[str, tuple[float, ...]] = {
            "nv_trt_llm_request_metrics": (
                *(batcher.active, batcher.settings.max_batch_size, scheduled, len(step.chunks)),
                max(0, batcher.active - scheduled),
            ),
            "nv_trt_llm_runtime_memory_metrics": (0, 0, 0),
            "nv_trt_llm_kv_cache_block_metrics": (
                *(pool.blocks_max, pool.free, used, pool.tokens_per_block, pool.reused_blocks, used / pool.blocks_max),
            ),
            "nv_trt_llm_inflight_batcher_metrics": (step.prefill_tokens, len(step.decoding), 0, len(step.paused)),
            "nv_trt_llm_general_metrics": (self.wall_clock() * 1e6, batcher.iterations),
        }
        named = {
            (family, name): float(value)
            for family, column in columns.items()
            for name, value in zip(GAUGES[family][1], column, strict=True)
        }
        self.take(named, batcher.iterations)

    def take(self, values: Mapping[tuple[str, str], float], iterations: int) -> None:
        """Take a sample that somebody else made, after so many iterations."""
        self.values.update(values)
        self.iterations = iterations
        self.samples += 1

    def rest(self) -> None:
        """The engine went idle: nobody is active in it any more, and nothing is computed."""
        self.take(dict.fromkeys(BUSY, 0.0), self.iterations)


class Export:
    """The gauges as custom metrics of the server. `family` is Triton's MetricFamily."""

    def __init__(self, family: Any, labels: Mapping[str, str]) -> None:
        self._families: list[Any] = []  # a metric lives as long as its family
        self._samples = 0
        self._gauges: dict[tuple[str, str], Any] = {}
        for name, (label, values) in GAUGES.items():
            gauge = self._family(family, name, family.GAUGE, f"TensorRT-LLM {name}")
            for value in values:
                self._gauges[name, value] = gauge.Metric(labels={**labels, label: value})
        self._lengths = [
            self._family(family, name, family.HISTOGRAM, f"TensorRT-LLM {name}").Metric(
                labels={**labels, "response_metric_type": value}, buckets=list(BUCKETS)
            )
            for name, value in HISTOGRAMS.items()
        ]
        self._counters = [
            self._family(family, name, family.COUNTER, description).Metric(labels=dict(labels))
            for name, description in COUNTERS.items()
        ]

    def update(self, gauges: Gauges, overruns: int) -> None:
        """Hand over the last sample, unless none was taken since: an idle engine's gauges keep what they say."""
        if gauges.samples == self._samples:
            return
        self._samples = gauges.samples
        for key, value in list(gauges.values.items()):
            self._gauges[key].set(value)
        for lengths in [gauges.lengths.pop() for _ in range(len(gauges.lengths))]:
            for metric, length in zip(self._lengths, lengths, strict=True):
                metric.observe(length)
        for metric, total in zip(self._counters, (gauges.iterations, overruns), strict=True):
            metric.increment(total - metric.value())

    def _family(self, family: Any, name: str, kind: Any, description: str) -> Any:
        self._families.append(family(name=name, description=description, kind=kind))
        return self._families[-1]
