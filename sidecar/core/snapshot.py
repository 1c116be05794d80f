"""What the scheduler looks like at one moment: for gauges, the status page, the demo's table and assertions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from sidecar.core.attribution import AttributionFigures
from sidecar.core.deadlines import JobVerdict
from sidecar.core.engine import Engine, Limit
from sidecar.core.events import RejectReason
from sidecar.core.jobs import Job
from sidecar.core.request import DispatchKind, Lane
from sidecar.core.served_model import ServedModel
from sidecar.core.tenants import Account, Tenants

TENANTS_NAMED = 50  # per lane of a model; callers choose their names, and a metric's labels must be bounded
OTHERS = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """One engine. Counters grow from the start of the process; slots add up to `slots`."""

    name: str
    model: str
    up: bool
    slots: int
    slots_online: int
    slots_offline: int
    slots_draining: int
    slots_free: int
    headroom_slots: int
    foreign_slots: int | None  # load on it that is not ours; None = no gauges tell
    limit_binding: Limit  # what holds offline back now
    window_ms: float  # how long a slot that comes free now waits for online
    online_rate_per_s: float
    dispatches: Mapping[DispatchKind, int]
    output_tokens: Mapping[Lane, int]  # kept ones: the token share beside the slot share
    contended: int
    offline_of_contended: int
    credit: int
    reserved_due: int
    reserved_taken: int
    reserved_postponed: int
    reserved_lapsed: int
    worst_window_share: float | None  # None before the first window of 2N contended dispatches
    window_violations: int
    starvation_gap_dispatches: int
    starvation_gap_s: float
    preemptions: int
    yields: int
    stop_to_free_ms: float  # running mean
    slice_factor: int  # how often the configured slice length; 0 = reuse failed, and requests run in one piece
    reuse_ratio: float  # share of what resumes expected in the KV cache that was there, running mean
    resumed_tokens: int
    recomputed_tokens: int
    discarded_tokens: int
    kv_tokens_max: int  # 0 = unknown
    kv_tokens: int  # held or leased by us
    kv_foreign_tokens: int
    kv_guard_tokens: int
    prefill_tokens: Mapping[Lane, int]  # prompt tokens not yet computed
    decoding_rows: Mapping[Lane, int]  # sequences whose first token has come
    decoding_context_tokens: Mapping[Lane, int]  # what they attend to
    attribution: AttributionFigures  # the latency model, what it allows, and what offline cost online

    @property
    def slots_busy(self) -> int:
        """Slots in use or draining."""
        return self.slots - self.slots_free


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSnapshot:
    """One tenant in one lane of one model, or together all that are not named (OTHERS)."""

    tenant: str
    waiting: int  # backing off included
    slots: int
    input_tokens: int  # served so far; what was computed again is not in it
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSnapshot:
    """One lane of one model: how many wait, and since when the oldest does."""

    model: str
    lane: Lane
    waiting: int
    backing_off: int
    oldest_age_s: float  # 0 when nobody waits
    intake_paused: bool
    tenants: tuple[TenantSnapshot, ...]  # the most served ones, and the others together


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSnapshot:
    """What waits or runs of one job, when it will be done, and whether that is in time. None = not known, or none.

    Without tenant and job: all those beyond the number of jobs that are told apart, of which nothing is forecast.
    """

    model: str
    tenant: str
    job: str
    items: int
    verdict: JobVerdict
    deadline_in_s: float | None
    eta_p50_s: float | None
    eta_p90_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole scheduler."""

    now_s: float
    closing: bool
    engines: Mapping[str, EngineSnapshot]
    lanes: tuple[LaneSnapshot, ...]
    jobs: tuple[JobSnapshot, ...]
    in_flight: int  # dispatches whose terminal event is owed
    rejects: Mapping[RejectReason, int]
    dead_letters: int
    retries: int

    def waiting(self, lane: Lane) -> int:
        """How many requests of `lane` wait, over all models."""
        return sum(each.waiting for each in self.lanes if each.lane is lane)


def engine_snapshot(engine: Engine, model: str, now_s: float) -> EngineSnapshot:
    """`engine` as it stands."""
    reservation, record = engine.reservation, engine.reservation.record
    ledger, counts = engine.ledger, engine.counts
    waited_s = 0.0 if engine.offline_waits_since_s is None else now_s - engine.offline_waits_since_s
    return EngineSnapshot(
        name=engine.settings.name,
        model=model,
        up=engine.up,
        slots=engine.settings.slots,
        slots_online=engine.in_use[Lane.ONLINE],
        slots_offline=engine.in_use[Lane.OFFLINE],
        slots_draining=engine.draining,
        slots_free=engine.free.slots,
        headroom_slots=engine.headroom,
        foreign_slots=ledger.foreign_slots if ledger.foreign_known else None,
        limit_binding=engine.limit_binding,
        window_ms=engine.window_s(now_s) * 1000,
        online_rate_per_s=engine.arrivals.per_s(now_s),
        dispatches=dict(counts.dispatches),
        output_tokens=dict(counts.output_tokens),
        contended=record.contended,
        offline_of_contended=record.offline,
        credit=reservation.credit,
        reserved_due=reservation.reserved_due,
        reserved_taken=reservation.reserved_taken,
        reserved_postponed=reservation.reserved_postponed,
        reserved_lapsed=reservation.reserved_lapsed,
        worst_window_share=record.worst_window_share,
        window_violations=record.window_violations,
        starvation_gap_dispatches=record.starvation_gap,
        starvation_gap_s=max(engine.starvation_gap_s, waited_s),
        preemptions=counts.preemptions,
        yields=counts.yields,
        stop_to_free_ms=engine.stop_s * 1000,
        slice_factor=engine.slices.factor,
        reuse_ratio=engine.slices.hit,
        resumed_tokens=counts.resumed_tokens,
        recomputed_tokens=counts.recomputed_tokens,
        discarded_tokens=counts.discarded_tokens,
        kv_tokens_max=int(ledger.kv_tokens_max) if ledger.kv_tokens_max < inf else 0,
        kv_tokens=ledger.kv_tokens,
        kv_foreign_tokens=ledger.foreign_kv_tokens,
        kv_guard_tokens=int(ledger.guard_tokens(engine.headroom)),
        prefill_tokens=dict(ledger.prefill_tokens),
        decoding_rows=dict(engine.attribution.batch.rows),
        decoding_context_tokens=dict(engine.attribution.batch.context),
        attribution=engine.attribution.figures(),
    )


def lane_snapshots(served: ServedModel, now_s: float) -> tuple[LaneSnapshot, ...]:
    """Both lanes of `served` as they stand. O(waiting): meant for some calls per second, not for each event."""
    return tuple(_lane_snapshot(served, lane, now_s) for lane in Lane)


def job_snapshots(served: ServedModel, now_s: float) -> tuple[JobSnapshot, ...]:
    """The jobs of `served`. What was forecast at the last look is told as of now."""
    return tuple(job_snapshot(served, job, now_s) for job in served.jobs)


def job_snapshot(served: ServedModel, job: Job, now_s: float) -> JobSnapshot:
    """One job of `served`."""
    elapsed_s = now_s - job.judged_s
    return JobSnapshot(
        model=served.model,
        tenant=job.tenant,
        job=job.name,
        items=job.items,
        verdict=job.verdict,
        deadline_in_s=_finite(job.deadline_s - now_s),
        eta_p50_s=_finite(job.eta.p50_s - elapsed_s),
        eta_p90_s=_finite(job.eta.p90_s - elapsed_s),
    )


def _finite(seconds: float) -> float | None:
    return seconds if seconds < inf else None


def tenant_snapshots(tenants: Tenants) -> tuple[TenantSnapshot, ...]:
    """The tenants of one lane that were served most, and the others together. O(tenants · log tenants)."""

    def row(name: str, accounts: Sequence[Account], forgotten: Sequence[int] = (0, 0)) -> TenantSnapshot:
        return TenantSnapshot(
            tenant=name,
            waiting=sum(each.requests - each.in_flight for each in accounts),
            slots=sum(each.slots for each in accounts),
            input_tokens=forgotten[0] + sum(each.input_tokens for each in accounts),
            output_tokens=forgotten[1] + sum(each.output_tokens for each in accounts),
        )

    accounts = sorted(tenants, key=lambda each: (-each.input_tokens - each.output_tokens, each.number))
    named = [each for each in accounts if each.name != OTHERS][:TENANTS_NAMED]
    names = {each.name for each in named}
    others = [each for each in accounts if each.name not in names]
    return (*(row(each.name, [each]) for each in named), row(OTHERS, others, tenants.forgotten))


def _lane_snapshot(served: ServedModel, lane: Lane, now_s: float) -> LaneSnapshot:
    queue = served.queue(lane)
    return LaneSnapshot(
        model=served.model,
        lane=lane,
        waiting=queue.waiting,
        backing_off=served.backing_off if lane is Lane.OFFLINE else 0,
        oldest_age_s=max((now_s - tracked.request.arrived_s for tracked in queue), default=0.0),
        intake_paused=served.intake_paused and lane is Lane.OFFLINE,
        tenants=tenant_snapshots(queue.tenants),
    )
