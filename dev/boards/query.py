"""Parts of PromQL queries whose metrics and labels are looked up in the tables of metrics.

A query that names a metric or a label that is gone cannot be written: KeyError says which.
"""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.cli.metric_rows import metric_rows
from sidecar.telemetry.metric_row import MetricRow

INTERVAL = "$__rate_interval"
_PROCESS = ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds")
_GPU = ("gpu", "UUID", "modelName")
FOREIGN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_PROCESS, ()),
    "DCGM_FI_PROF_SM_ACTIVE": _GPU,
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": _GPU,
    "DCGM_FI_PROF_DRAM_ACTIVE": _GPU,
    "DCGM_FI_DEV_FB_USED": _GPU,
    "DCGM_FI_DEV_POWER_USAGE": _GPU,
    "nv_trt_llm_request_metrics": ("model", "request_type"),
    "nv_trt_llm_kv_cache_block_metrics": ("model", "kv_cache_block_type"),
    "nv_trt_llm_inflight_batcher_metrics": ("model", "inflight_batcher_specific_metric"),
    "nv_trt_llm_runtime_memory_metrics": ("model", "memory_type"),
    "ALERTS": ("alertname", "alertstate", "severity"),
}
"""Metrics of others, which have neither our jobs nor our models: their `model` is Triton's own."""


def _samples(row: MetricRow[object]) -> dict[str, tuple[str, ...]]:
    if row.kind == "counter":
        return {f"{row.name}_total": row.labels}
    if row.kind == "gauge":
        return {row.name: row.labels}
    return {f"{row.name}_bucket": (*row.labels, "le")} | dict.fromkeys(
        (f"{row.name}_sum", f"{row.name}_count"), row.labels
    )


OURS = {name: labels for row in metric_rows() for name, labels in _samples(row).items()}


def of(name: str, **labels: str) -> str:
    """Return the selector of a metric: ours within the board's job, instance and model. `~` begins a pattern."""
    known = OURS.get(name, FOREIGN.get(name))
    if known is None:
        raise KeyError(f"no metric is called {name}")
    if unknown := labels.keys() - set(known):
        raise KeyError(f"{name} has no label {', '.join(sorted(unknown))}")
    filters = ['job=~"$job"', 'instance=~"$instance"'] if name in OURS or name in _PROCESS else []
    if name in OURS:
        filters += [f'{label}=~"$model"' for label in ("model", "gen_ai_request_model") if label in known]
    for label, value in labels.items():
        negated, pattern = value.startswith("!"), value.lstrip("!").startswith("~")
        operator = {(False, False): "=", (False, True): "=~", (True, False): "!=", (True, True): "!~"}[negated, pattern]
        filters.append(f'{label}{operator}"{value.lstrip("!~")}"')
    return f"{name}{{{', '.join(filters)}}}" if filters else name


def together(how: str, query: str, by: str = "") -> str:
    """Return an aggregation: `sum`, `max`, `min` or `avg`, of each combination of the labels `by`."""
    return f"{how} by ({by}) ({query})" if by else f"{how}({query})"


def total(name: str, by: str = "", **labels: str) -> str:
    """Return the sum of a gauge."""
    return together("sum", of(name, **labels), by)


def highest(name: str, by: str = "", **labels: str) -> str:
    """Return the highest value of a gauge."""
    return together("max", of(name, **labels), by)


def lowest(name: str, by: str = "", **labels: str) -> str:
    """Return the lowest value of a gauge."""
    return together("min", of(name, **labels), by)


def rate(name: str, by: str = "", over: str = INTERVAL, **labels: str) -> str:
    """Return how fast a counter grows, per second."""
    return together("sum", f"rate({of(name, **labels)}[{over}])", by)


def grown(name: str, by: str = "", over: str = "$__range", **labels: str) -> str:
    """Return by how much a counter grew."""
    return together("sum", f"increase({of(name, **labels)}[{over}])", by)


def per(dividend: str, divisor: str) -> str:
    """Return a quotient that has no sample, rather than NaN, where the divisor is 0."""
    return f"{dividend} / ({divisor} > 0)"


def mean(name: str, by: str = "", **labels: str) -> str:
    """Return the mean of what a histogram observed."""
    return per(rate(f"{name}_sum", by, **labels), rate(f"{name}_count", by, **labels))


def percentile(share: float, name: str, by: str = "", **labels: str) -> str:
    """Return a percentile of what a histogram observed."""
    groups = ", ".join(each for each in ("le", by) if each)
    return f"histogram_quantile({share}, {rate(f'{name}_bucket', groups, **labels)})"


def percentiles(name: str, shares: Iterable[float] = (0.5, 0.95, 0.99), **labels: str) -> dict[str, str]:
    """Return the queries of some percentiles by their legend."""
    return {f"p{share * 100:.0f}": percentile(share, name, **labels) for share in shares}
