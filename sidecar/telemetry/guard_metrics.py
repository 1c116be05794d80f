"""What holds offline back on each engine, and what the latency model knows: read off the snapshot at each scrape."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.core.engine import Limit
from sidecar.core.latency import MAPE_MAX, LatencyFigures
from sidecar.core.snapshot import EngineSnapshot, Snapshot

_LABELS = ("model", "engine")
_TERMS = ("iteration_ms", "row_ms", "context_1000_ms", "prefill_token_ms", "prefill_square_ms")


def guard_families(snapshot: Snapshot) -> Iterable[Metric]:
    """The families of the limits, of the latency model and of what the guard compares."""
    engines = list(snapshot.engines.values())
    yield _limits(engines)
    yield from _model(engines)
    yield from _guard(engines)
    yield from _signals(engines)
    yield from _slices(engines)


def _limits(engines: list[EngineSnapshot]) -> Metric:
    """1 for the limit that binds, 0 for all others: its average over time is the share of time that it bound."""
    family = GaugeMetricFamily("sidecar_limit_binding", "What holds offline back now", labels=(*_LABELS, "limit"))
    for engine in engines:
        for limit in Limit:
            family.add_metric((engine.model, engine.name, limit), engine.limit_binding is limit)
    return family


def _slices(engines: list[EngineSnapshot]) -> Iterable[Metric]:
    """How long slices are, and what makes them so. Before the first resume nothing is known of reuse."""
    factor = GaugeMetricFamily("sidecar_slice_factor", "Slices ÷ slice_tokens; 0: items run whole", labels=_LABELS)
    reuse = GaugeMetricFamily("sidecar_kv_reuse_ratio", "Share of a resume's tokens found cached", labels=_LABELS)
    for engine in engines:
        factor.add_metric((engine.model, engine.name), engine.slice_factor)
        if engine.resumed_tokens:
            reuse.add_metric((engine.model, engine.name), engine.reuse_ratio)
    return (factor, reuse)


def _model(engines: list[EngineSnapshot]) -> Iterable[Metric]:
    terms = GaugeMetricFamily("sidecar_latency_model_seconds", "Coefficients", labels=(*_LABELS, "term"))
    error = GaugeMetricFamily("sidecar_latency_model_error_ratio", "Mean relative error of late", labels=_LABELS)
    trusted = GaugeMetricFamily("sidecar_latency_model_trusted", "It may decide", labels=_LABELS)
    for engine in engines:
        where, figures = (engine.model, engine.name), engine.interference.latency
        for term, value_s in _coefficients(figures):
            terms.add_metric((*where, term), value_s)
        if figures.mape is not None:
            error.add_metric(where, figures.mape)
        trusted.add_metric(where, figures.trusted)
    return (terms, error, trusted)


def _coefficients(figures: LatencyFigures) -> Iterable[tuple[str, float]]:
    for term in _TERMS:
        yield term.removesuffix("_ms"), getattr(figures, term) / 1000


def _guard(engines: list[EngineSnapshot]) -> Iterable[Metric]:
    """Rows appear only while there is such a limit."""
    margin = GaugeMetricFamily("sidecar_guard_margin_ratio", "Share of the slack held back", labels=_LABELS)
    slack = GaugeMetricFamily("sidecar_guard_slack_seconds", "Room that the slowest online has left", labels=_LABELS)
    rows = GaugeMetricFamily("sidecar_guard_rows", "Rows offline may have", labels=(*_LABELS, "limit"))
    decreases = CounterMetricFamily("sidecar_aimd_decreases", "Times that AIMD took rows away", labels=_LABELS)
    alone = GaugeMetricFamily("sidecar_online_alone_seconds", "Mean grant to end, predicted alone", labels=_LABELS)
    added = GaugeMetricFamily("sidecar_online_added_seconds", "Mean of what was measured beyond", labels=_LABELS)
    for engine in engines:
        where, figures = (engine.model, engine.name), engine.interference
        margin.add_metric(where, figures.guard_margin)
        slack.add_metric(where, figures.slack_ms / 1000)
        for limit, most in ((Limit.LATENCY, figures.guard_rows), (Limit.AIMD, figures.aimd_rows)):
            if most is not None:
                rows.add_metric((*where, limit), most)
        decreases.add_metric(where, figures.aimd_decreases)
        if figures.attributed:
            alone.add_metric(where, figures.alone_ms / 1000)
            added.add_metric(where, figures.added_ms / 1000)
    return (margin, slack, rows, decreases, alone, added)


def _signals(engines: list[EngineSnapshot]) -> Iterable[Metric]:
    """What the guard sees beside what it allows. A signal that is not known is not there."""
    labels = (*_LABELS, "signal")
    signal = GaugeMetricFamily("sidecar_guard_signal", "What the guard sees", labels=labels)
    threshold = GaugeMetricFamily("sidecar_guard_threshold", "Its limit", labels=labels)
    for engine in engines:
        for name, seen, most in _compared(engine):
            signal.add_metric((engine.model, engine.name, name), seen)
            threshold.add_metric((engine.model, engine.name, name), most)
    return (signal, threshold)


def _compared(engine: EngineSnapshot) -> Iterable[tuple[str, float, float]]:
    figures = engine.interference
    if engine.kv_tokens_max:
        used = engine.kv_tokens + engine.kv_foreign_tokens
        yield "kv_cache_utilization", used / engine.kv_tokens_max, 1 - engine.kv_guard_tokens / engine.kv_tokens_max
    if figures.latency.mape is not None:
        yield "model_error", figures.latency.mape, MAPE_MAX
    limits = [most for most in (figures.guard_rows, figures.aimd_rows) if most is not None]
    if limits:
        yield "offline_rows", engine.slots_offline, min(limits)
