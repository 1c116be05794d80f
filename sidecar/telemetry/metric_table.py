"""The metrics of requests, slots and engines, one row each: those kept as things happen, and those read at a scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.core.deadlines import JobVerdict
from sidecar.core.engine import Limit
from sidecar.core.iteration_model import ERROR_MAX
from sidecar.core.request import Lane
from sidecar.core.snapshot import OTHERS, EngineSnapshot, JobSnapshot, LaneSnapshot, Snapshot
from sidecar.telemetry.metric_row import Labelled, MetricRow, value

_DURATION_S = tuple(0.01 * 2**power for power in range(14))  # 10 ms to 82 s
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_TPOT_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_RPC_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
JOBS_SHOWN = 50  # producers choose the names of jobs, and a metric's labels must be bounded
_WAIT_ONLINE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
WAIT_OFFLINE_S = (0.5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400)
_SLOWDOWN = (0.9, 1, 1.02, 1.05, 1.1, 1.15, 1.25, 1.5, 2, 3, 5)
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "lane")
_RPC = ("rpc_system_name", "rpc_method", "rpc_status_code")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """What one scrape shows."""

    snapshot: Snapshot
    addresses: Mapping[str, str]  # of the engines, by name
    slot_seconds: Mapping[tuple[str, Lane], float]  # by engine and lane
    usd: Iterable[tuple[str, str, Mapping[str, float]]]  # model, engine, and dollars by who had the slots
    tenant_tokens: Iterable[Labelled]
    dropped_spans: int
    recorder: Mapping[str, Any] | None
    loop_lag_s: float
    weights: Mapping[str, float] = field(default_factory=dict)  # of the tenants that the settings name


Row = MetricRow[Scrape]
Reader = Callable[[Scrape], Iterator[Labelled]]

# ---- kept as things happen -------------------------------------------------------------------------------------------

# fmt: off
DURATION = Row("gen_ai_server_request_duration_seconds", "histogram",
    "Time from the arrival of a request to its last token.", (*_GEN_AI, "error_type"), buckets=_DURATION_S)
TTFT = Row("gen_ai_server_time_to_first_token_seconds", "histogram",
    "Time from the arrival of a request to its first token.", _GEN_AI, buckets=_TTFT_S)
TPOT = Row("gen_ai_server_time_per_output_token_seconds", "histogram",
    "Mean time per output token of a request after its first token.", _GEN_AI, buckets=_TPOT_S)
RPC_SERVER = Row(
    "rpc_server_call_duration_seconds", "histogram", "Duration of the RPCs of callers.", _RPC, buckets=_RPC_S)
RPC_CLIENT = Row("rpc_client_call_duration_seconds", "histogram", "Duration of the dispatches to the engines.",
    (*_RPC, "server_address"), buckets=_RPC_S)
QUEUE_WAIT = Row("sidecar_queue_wait_seconds", "histogram",
    "Time that a request waited for its slots; each lane has its own buckets.", ("model", "lane"),
    buckets=_WAIT_ONLINE_S)
REQUESTS = Row("sidecar_requests", "counter", "Requests that are over, by their outcome.",
    ("model", "lane", "outcome", "error_type"))
TOKENS = Row("sidecar_tokens", "counter", "Tokens of prompts and of outputs.", ("model", "lane", "token_type"))
DISPATCHES = Row(
    "sidecar_dispatches", "counter", "Dispatches that got their slots, by kind.", ("model", "lane", "kind"))
PREEMPTIONS = Row(
    "sidecar_preemptions", "counter", "Offline dispatches that were stopped for online requests.", ("model", "reason"))
OFFLINE_MAX_WAIT = Row("sidecar_offline_max_wait_seconds", "gauge",
    "Longest time that a due reserved dispatch of the offline lane may be put off, by the settings.", ("model",))
INTERFERENCE = Row("sidecar_interference_seconds", "histogram",
    "Time that an online request took from its slot to its end beyond the prediction without offline work.",
    ("model",), buckets=_WAIT_ONLINE_S)
SLOWDOWN = Row("sidecar_slowdown_ratio", "histogram",
    "Time of an online request from its slot to its end, divided by the prediction without offline work.", ("model",),
    buckets=_SLOWDOWN)
HELD = Row("sidecar_offline_held", "counter",
    "Offline requests that found no free slot when they came, by the limit that held them back.", ("model", "reason"))
SLO_TARGET = Row("sidecar_slo_target_seconds", "gauge", "Objective of a request that does not state its own.", ("slo",))
SLO_EVENTS = Row("sidecar_slo_events", "counter", "Online requests that met or missed an objective.",
    ("model", "slo", "verdict"))
DEADLINES = Row("sidecar_deadlines", "counter", "Requests with a deadline that ended before it (met) or not (missed).",
    ("model", "lane", "verdict"))
BUILD = Row("sidecar_build_info", "gauge", "Version and hash of the settings that run.", ("version", "config_hash"))
# fmt: on

KEPT = (
    *(DURATION, TTFT, TPOT, RPC_SERVER, RPC_CLIENT, QUEUE_WAIT, REQUESTS, TOKENS, DISPATCHES, PREEMPTIONS),
    *(OFFLINE_MAX_WAIT, INTERFERENCE, SLOWDOWN, HELD, SLO_TARGET, SLO_EVENTS, DEADLINES, BUILD),
)

# ---- read at a scrape ------------------------------------------------------------------------------------------------

_ENGINE = ("model", "engine")
_TENANT = ("model", "lane", "tenant")
_JOB = ("model", "tenant", "job_name")  # `job` is Prometheus' own label


def _engine(read: Callable[[EngineSnapshot], float | None]) -> Reader:
    """Read one number off each engine; None = no sample."""
    return _engine_by(lambda engine: [("", read(engine))])


def _engine_by(read: Callable[[EngineSnapshot], Iterable[tuple[str, float | None]]]) -> Reader:
    """Read numbers off each engine, each with the value of one more label, or "" without one; None = no sample."""

    def samples(scrape: Scrape) -> Iterator[Labelled]:
        for engine in scrape.snapshot.engines.values():
            for label, number in read(engine):
                if number is not None:
                    yield (engine.model, engine.name, *([label] if label else [])), number

    return samples


def _lane(read: Callable[[LaneSnapshot], float]) -> Reader:
    """Read one number off each lane of each model."""
    return lambda scrape: (((each.model, each.lane), read(each)) for each in scrape.snapshot.lanes)


def _recorder(read: Callable[[Mapping[str, Any]], float]) -> Reader:
    """Read one number off the recorder; no sample where none was asked for."""
    return value(lambda scrape: None if scrape.recorder is None else read(scrape.recorder))


def _ready(scrape: Scrape) -> Iterator[Labelled]:
    for name, engine in scrape.snapshot.engines.items():
        yield (engine.model, scrape.addresses[name]), engine.up


def _slot_seconds(scrape: Scrape) -> Iterator[Labelled]:
    for (name, lane), seconds in scrape.slot_seconds.items():
        if (engine := scrape.snapshot.engines.get(name)) is not None:
            yield (engine.model, name, lane), seconds


def _usd(scrape: Scrape) -> Iterator[Labelled]:
    for model, name, spent in scrape.usd:
        for who, usd in spent.items():
            yield (model, name, who), usd


def _tenants_waiting(scrape: Scrape) -> Iterator[Labelled]:
    for lane in scrape.snapshot.lanes:
        for row in lane.tenants:
            yield (lane.model, lane.lane, tenant_label(row.tenant)), row.waiting


def tenant_label(tenant: str) -> str:
    """Return the name as a label: one that cannot be encoded would cost everybody the page."""
    return tenant.encode(errors="backslashreplace").decode()


def _tenants_slots(scrape: Scrape) -> Iterator[Labelled]:
    for lane in scrape.snapshot.lanes:
        for row in lane.tenants:
            yield (lane.model, lane.lane, tenant_label(row.tenant)), row.slots


def _tenants_weights(scrape: Scrape) -> Iterator[Labelled]:
    for lane in scrape.snapshot.lanes:
        for row in lane.tenants:
            if row.tenant != OTHERS:  # several tenants together have no weight of their own
                yield (lane.model, lane.lane, tenant_label(row.tenant)), scrape.weights.get(row.tenant, 1.0)


def _shown_jobs(jobs: Iterable[JobSnapshot]) -> list[JobSnapshot]:
    """Return the jobs that have labels: those that will miss their deadline, then those with most items."""
    late = (JobVerdict.AT_RISK, JobVerdict.INFEASIBLE)
    named = (each for each in jobs if each.job)
    return sorted(named, key=lambda each: (each.verdict not in late, -each.items, each.tenant, each.job))[:JOBS_SHOWN]


def _job_by(read: Callable[[JobSnapshot], Iterable[tuple[str, float | None]]]) -> Reader:
    """Read numbers off each job that has labels, as `_engine_by` does."""

    def samples(scrape: Scrape) -> Iterator[Labelled]:
        for each in _shown_jobs(scrape.snapshot.jobs):
            for label, number in read(each):
                if number is not None:
                    names = (each.model, tenant_label(each.tenant), tenant_label(each.job))
                    yield (*names, *([label] if label else [])), number

    return samples


def _late(job: JobSnapshot) -> Iterator[tuple[str, float | None]]:
    if job.verdict is JobVerdict.ON_TIME:
        yield "", 0
    elif job.verdict in (JobVerdict.AT_RISK, JobVerdict.INFEASIBLE):
        yield "", 1


def _reserved(engine: EngineSnapshot) -> Iterator[tuple[str, int]]:
    for result in ("due", "taken", "postponed", "lapsed"):
        yield result, getattr(engine, f"reserved_{result}")


def _terms(engine: EngineSnapshot) -> Iterator[tuple[str, float]]:
    for term in ("iteration", "token", "context_1000"):
        yield term, getattr(engine.attribution.iteration, f"{term}_ms") / 1000


def _added(engine: EngineSnapshot) -> Iterator[tuple[str, float]]:
    yield "ttft", engine.attribution.ttft_share
    yield "itl", engine.attribution.itl_share


def _guarded(engine: EngineSnapshot) -> Iterator[tuple[str, float, float]]:
    """What the guard sees, and its threshold. A signal that is not known is not there."""
    figures = engine.attribution
    if engine.kv_tokens_max:
        used = engine.kv_tokens + engine.kv_foreign_tokens
        yield "kv_cache_utilization", used / engine.kv_tokens_max, 1 - engine.kv_guard_tokens / engine.kv_tokens_max
    if figures.iteration.error is not None:
        yield "model_error", figures.iteration.error, ERROR_MAX


# fmt: off
SCRAPED: tuple[Row, ...] = (
    Row("sidecar_slots", "gauge", "Slots of the engine.", _ENGINE, _engine(lambda each: each.slots)),
    Row("sidecar_slots_in_use", "gauge", "Slots in use.", (*_ENGINE, "lane"),
        _engine_by(lambda each: [(Lane.ONLINE, each.slots_online), (Lane.OFFLINE, each.slots_offline)])),
    Row("sidecar_slots_reserved", "gauge", "Slots kept free for the next online requests.", (*_ENGINE, "lane"),
        _engine_by(lambda each: [(Lane.ONLINE, each.headroom_slots)])),
    Row("sidecar_slots_foreign", "gauge", "Slots in use by others than this sidecar, where the engine's gauges tell.",
        _ENGINE, _engine(lambda each: each.foreign_slots)),
    Row("sidecar_engine_ready", "gauge", "1 while the engine takes work.", ("model", "server_address"), _ready),
    Row("sidecar_reserved_dispatches", "counter",
        "Reserved dispatches that the offline lane was owed, by what became of them.",
        (*_ENGINE, "result"), _engine_by(_reserved)),
    Row("sidecar_slot_seconds", "counter", "Slots in use, summed over time.", (*_ENGINE, "lane"), _slot_seconds),
    Row("sidecar_queue_depth", "gauge", "Requests that wait.", ("model", "lane"), _lane(lambda each: each.waiting)),
    Row("sidecar_queue_oldest_age_seconds", "gauge", "Age of the oldest request that waits.", ("model", "lane"),
        _lane(lambda each: each.oldest_age_s)),
    Row("sidecar_tenant_tokens", "counter", "Tokens that a tenant was served.",
        ("model", "lane", "tenant", "token_type"), lambda scrape: scrape.tenant_tokens),
    Row("sidecar_tenant_waiting", "gauge", "Requests of a tenant that wait.", ("model", "lane", "tenant"),
        _tenants_waiting),
    Row("sidecar_limit_binding", "gauge", "1 for the limit that holds the offline lane back now, 0 for all others.",
        (*_ENGINE, "limit"), _engine_by(lambda each: [(limit, each.limit_binding is limit) for limit in Limit])),
    Row("sidecar_latency_model_seconds", "gauge", "Coefficients of the latency model.", (*_ENGINE, "term"),
        _engine_by(_terms)),
    Row("sidecar_latency_model_error_ratio", "gauge", "Median relative error of the latency model's last predictions.",
        _ENGINE, _engine(lambda each: each.attribution.iteration.error)),
    Row("sidecar_latency_model_trusted", "gauge", "1 while the latency model may decide.", _ENGINE,
        _engine(lambda each: each.attribution.iteration.trusted)),
    Row("sidecar_online_added_ratio", "gauge",
        "Share by which the offline lane makes first tokens later, and gaps between tokens longer.",
        (*_ENGINE, "figure"), _engine_by(_added)),
    Row("sidecar_online_alone_seconds", "gauge",
        "Mean time of online requests from slot to end, as predicted without offline work.", _ENGINE,
        _engine(lambda each: each.attribution.alone_ms / 1000 if each.attribution.attributed else None)),
    Row("sidecar_online_added_seconds", "gauge", "Mean time that online requests took beyond that prediction.",
        _ENGINE, _engine(lambda each: each.attribution.added_ms / 1000 if each.attribution.attributed else None)),
    Row("sidecar_guard_signal", "gauge", "What the guard measures.", (*_ENGINE, "signal"),
        _engine_by(lambda each: ((name, seen) for name, seen, _ in _guarded(each)))),
    Row("sidecar_guard_threshold", "gauge", "Value of the signal at which the guard holds the offline lane back.",
        (*_ENGINE, "signal"), _engine_by(lambda each: ((name, most) for name, _, most in _guarded(each)))),
    Row("sidecar_slice_factor", "gauge", "Length of a slice divided by slice_tokens; 0 = items run in one piece.",
        _ENGINE, _engine(lambda each: each.slice_factor)),
    Row("sidecar_kv_reuse_ratio", "gauge",
        "Share of a resumed item's tokens that the engine still had in its KV cache.", _ENGINE,
        _engine(lambda each: each.reuse_ratio if each.resumed_tokens else None)),
    Row("sidecar_cost_usd", "counter", "Rent of the engines in US dollars, by who had the slots.", (*_ENGINE, "lane"),
        _usd),
    Row("sidecar_dropped_spans", "counter", "Spans that were never sent.", (), value(lambda each: each.dropped_spans)),
    Row("sidecar_recorder_running", "gauge", "1 while decisions are being recorded.", (),
        _recorder(lambda found: found["state"] == "running")),
    Row("sidecar_recorder_dropped_records", "counter", "Decisions that are in no file of the recorder.", (),
        _recorder(lambda found: found["dropped"])),
    Row("sidecar_event_loop_lag_seconds", "gauge", "Longest delay of the event loop since the last scrape.", (),
        value(lambda each: each.loop_lag_s)),
    Row("sidecar_resumed_tokens", "counter", "Tokens of unfinished items that were sent again when the items went on.",
        _ENGINE, _engine(lambda each: each.resumed_tokens)),
    Row("sidecar_redone_tokens", "counter",
        "Tokens that the engine computed twice: context that had left its KV cache (recomputed), or output that was "
        "thrown away (discarded).", (*_ENGINE, "cause"),
        _engine_by(lambda each: [("recomputed", each.recomputed_tokens), ("discarded", each.discarded_tokens)])),
    Row("sidecar_yields", "counter", "Offline chunks that were stopped because online requests were resident.", _ENGINE,
        _engine(lambda each: each.yields)),
    Row("sidecar_contended_dispatches", "counter", "Dispatches that both lanes wanted, by the lane that got them.",
        (*_ENGINE, "lane"), _engine_by(lambda each: [(Lane.OFFLINE, each.offline_of_contended),
            (Lane.ONLINE, each.contended - each.offline_of_contended)])),
    Row("sidecar_worst_window_share_ratio", "gauge",
        "Smallest share of the offline lane in a whole window of contended dispatches since the start.", _ENGINE,
        _engine(lambda each: each.worst_window_share)),
    Row("sidecar_window_violations", "counter",
        "Windows of contended dispatches with fewer offline ones than promised.",
        _ENGINE, _engine(lambda each: each.window_violations)),
    Row("sidecar_starvation_gap_seconds", "gauge",
        "Longest time that the offline lane waited for a dispatch on the engine since the start.", _ENGINE,
        _engine(lambda each: each.starvation_gap_s)),
    Row("sidecar_tenant_slots", "gauge", "Slots that a tenant has now.", _TENANT, _tenants_slots),
    Row("sidecar_tenant_weight", "gauge", "Weight of a tenant by the settings: its share against the others that wait.",
        _TENANT, _tenants_weights),
    Row("sidecar_job_items", "gauge", f"Items of a job that wait or run; at most {JOBS_SHOWN} jobs, late ones first.",
        _JOB, _job_by(lambda each: [("", each.items)])),
    Row("sidecar_job_eta_seconds", "gauge", "Time until a job is done, as likely as not (p50) or in nine of ten cases.",
        (*_JOB, "percentile"), _job_by(lambda each: [("p50", each.eta_p50_s), ("p90", each.eta_p90_s)])),
    Row("sidecar_job_deadline_seconds", "gauge", "Time until the earliest deadline of a job; negative once it is over.",
        _JOB, _job_by(lambda each: [("", each.deadline_in_s)])),
    Row("sidecar_job_at_risk", "gauge", "1 if a job will probably miss its deadline, 0 if it will probably meet it.",
        _JOB, _job_by(_late)),
)
# fmt: on

METRICS = (*KEPT, *SCRAPED)
