"""One run: one workload, one policy, one seed. What came of it, and a hash of every action with its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from heapq import merge

from numpy.random import SeedSequence, default_rng

from sidecar.core.events import Action, DeadLetter, Dispatch, Ending, Event, Finished, Forecast, Preempt, Reject
from sidecar.core.invariants import Invariants
from sidecar.core.request import DispatchKind, Lane
from sidecar.core.scheduler import Scheduler
from sidecar.inflight.batch import BatcherSettings
from sidecar.inflight.profile import IterationTimes
from sidecar.sim.arrivals_file import Arrivals
from sidecar.sim.driver import Decides, Observer, SimulatedDriver
from sidecar.sim.faults import FaultRates, SimulatedFaults
from sidecar.sim.figures import ReservationRecord, Served
from sidecar.sim.jobs import JobWatch, Kept
from sidecar.sim.machine import Machine, MachineTime
from sidecar.sim.policies import CHUNK_TOKENS, ENGINE, NEVER, EngineShape, Policy
from sidecar.sim.progress import RequestProgress
from sidecar.sim.workloads import SimulatedRequest, Workload

WARM_UP_S = 300.0  # not counted for offline throughput: the batch fills in step at first, later it is spread
PROGRESS_S = 0.25  # token counts are told four times a second instead of a hundred, to save time; first tokens as ever
DRAIN_S = 120.0  # after the end, at most, for online requests still in flight


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What to run."""

    workload: Workload
    profile: IterationTimes
    slots: int
    hours: float
    seed: int
    recorded: Sequence[SimulatedRequest] | None = None  # online arrivals instead of the workload's own
    trace: Arrivals | None = None  # of which the requests of this run are drawn, so that `trace_per_s` come
    trace_per_s: float = 0.0
    every: int = 10  # N of the promise that is measured
    check_every: int = 0  # invariants after each so many events; 0 = never (the driver's own checks are always on)
    overrides: Mapping[str, object] = field(default_factory=dict)
    faults: bool = False  # cancels, failures, losses and engine deaths, at rates drawn from the seed

    @property
    def seconds(self) -> float:
        """Simulated time with arrivals."""
        return self.hours * 3600

    def arrivals(self) -> Sequence[SimulatedRequest]:
        """Return the online requests of this run, by time."""
        if self.trace is not None:
            return self.trace.thinned(self.trace_per_s, self.hours, self.seed)
        return self.recorded if self.recorded is not None else self.workload.online(self.seed, self.hours)

    @property
    def shape(self) -> EngineShape:
        """Return what a policy is told of the engine."""
        return EngineShape(
            slots=self.slots,
            profile=self.profile,
            tokens_max=self.tokens_max,
            kv_tokens_max=self.kv_tokens_max,
            overrides=self.overrides,
        )

    @property
    def warm_s(self) -> float:
        """Return when offline throughput begins to count."""
        return min(WARM_UP_S, self.seconds / 4)

    @property
    def kv_tokens_max(self) -> int:
        """Return what the KV cache of the engine holds."""
        return self.workload.engine.kv_tokens_max or self.profile.kv_tokens_max

    @property
    def tokens_max(self) -> int:
        """The longest sequence the engine must hold."""
        arrivals = self.trace.jobs if self.trace else self.recorded or ()
        longest = max((job.request.prompt_tokens + job.request.output_tokens_max for job in arrivals), default=0)
        return max(longest, 32_768 if self.workload.heavy_every_s else self.workload.mix.tokens_max)


@dataclass(slots=True, kw_only=True)
class Result:
    """What one run gave."""

    served: list[Served]
    refused: int  # online requests without an answer
    offline_tokens_per_s: float
    busy_ratio: float
    idle_ratio: float  # of the time, in which the engine computed nothing
    offline_rows: float  # that decode in an iteration, on average
    wasted_ratio: float
    redone_ratio: float  # generated and thrown away ÷ generated
    shared_ratio: float  # of the prompt tokens, those that the KV cache had from other requests
    preemptions: int
    victims_least: int  # the fewest that would have done
    promise: ReservationRecord
    starvation_gap_s: float
    gaps_s: list[tuple[float, int]]
    jobs: list[Kept]
    sha256: str
    requests: int
    events: int


class Witness(Observer):
    """Writes down what a run's figures need."""

    def __init__(self, plan: RunPlan, policy: Policy, shape: EngineShape, scheduler: Decides) -> None:
        self.served: list[Served] = []
        self.refused = self.requests = self.preemptions = self.victims_least = 0
        self.promise = ReservationRecord(every=plan.every)
        self.jobs = JobWatch(plan.workload.batches(plan.hours) if policy.offline else [], scheduler)
        self._offline_at_s = 0.0
        self._offline_gap_s = 0.0
        self._hash, self._lines = sha256(), list[str]()
        self._scheduler, self._check_every, self._events = scheduler, plan.check_every, 0
        self._invariants: Invariants | None = None
        settings, engine = policy.settings(shape)
        self._yield_rows = engine.yield_rows if isinstance(scheduler, Scheduler) else "never"
        if plan.check_every and isinstance(scheduler, Scheduler):
            self._invariants = Invariants(settings, [engine])

    def decided(self, event: Event, actions: Sequence[Action], driver: SimulatedDriver) -> None:
        if self._invariants is not None:
            self._invariants.observe(event, actions, driver.now_s)
            self._events += 1
            if self._events % self._check_every == 0 and isinstance(self._scheduler, Scheduler):
                self._invariants.check(self._scheduler.snapshot())
        if not actions:
            return
        for action in actions:
            if isinstance(action, Dispatch):
                self._dispatched(action, driver.now_s)
            elif isinstance(action, Finished):
                if not isinstance(action.outcome, Ending):  # the others follow from the events
                    self._lines.append(f"{driver.now_s:.6f} {_closing_text(action.request_id, action.outcome)}")
            else:
                if isinstance(action, Forecast):
                    self.jobs.told(action, driver.now_s)
                self._lines.append(f"{driver.now_s:.6f} {action}")
        if victims := sum(isinstance(action, Preempt) for action in actions):
            self._preempted(victims, actions, driver)
        if len(self._lines) > 1000:
            self._flush()

    def _dispatched(self, action: Dispatch, now_s: float) -> None:
        online = action.kind is DispatchKind.ONLINE
        if action.contended:
            self.promise.offline.append(not online)
        if not online:
            self._offline_gap_s, self._offline_at_s = self.offline_gap_s(now_s), now_s
        self._lines.append(
            f"{now_s:.6f} {action.kind} {action.request_id} {action.output_tokens} {action.prompt_tokens}"
        )

    def _preempted(self, victims: int, actions: Sequence[Action], driver: SimulatedDriver) -> None:
        """Compare the victims with the fewest that do: online left without a slot, or rows above the yield."""
        running = [each.running for each in driver.alive.values() if each.running]
        stopping = sum(each.stopping for each in running)
        dispatched = [each for each in actions if isinstance(each, Dispatch)]
        online_dispatched = sum(each.kind is DispatchKind.ONLINE for each in dispatched)
        deficit = driver.waiting[Lane.ONLINE] - online_dispatched - stopping
        least = max(0, deficit)
        if self._yield_rows == "auto":
            least = max(least, victims)  # the guard's own judgement: nothing else says how many rows are too many
        elif isinstance(self._yield_rows, int):
            offline = sum(each.action.kind is not DispatchKind.ONLINE and not each.stopping for each in running)
            least = max(least, offline + len(dispatched) - online_dispatched - self._yield_rows)
        self.preemptions += victims
        self.victims_least += min(victims, least)

    def finished(self, progress: RequestProgress) -> None:
        self.requests += 1
        request = progress.request
        if request.lane is Lane.OFFLINE:
            self.jobs.over(progress)
            return
        if progress.outcome != "ended":
            self.refused += 1
            return
        at_s = request.arrived_s
        ttft_s, e2e_s = progress.first_token_s - at_s, progress.finished_s - at_s
        self.served.append(Served(id=request.id, tenant=request.tenant, arrived_s=at_s, ttft_s=ttft_s, e2e_s=e2e_s))

    def offline_gap_s(self, now_s: float) -> float:
        """The longest time without a dispatch to offline."""
        return max(self._offline_gap_s, now_s - self._offline_at_s)

    def sha256(self) -> str:
        """Of every action so far, with its time in microseconds."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        self._hash.update("\n".join(self._lines).encode())
        self._lines.clear()


def _closing_text(request_id: str, outcome: Reject | DeadLetter) -> str:
    """As traces have named it since before it was an outcome: with the id as its first field."""
    return str(outcome).replace("(", f"(request_id={request_id!r}, ", 1)


def run(plan: RunPlan, policy: Policy) -> Result:
    """Run it. Raises BrokenPromiseError or InvariantError if the scheduler or an engine breaks a promise."""
    shape = plan.shape
    scheduler = policy.decider(shape)
    machine = _machine(plan, policy)
    witness = Witness(plan, policy, shape, scheduler)
    driver = SimulatedDriver(
        scheduler=scheduler,
        machines={ENGINE: machine},
        observer=witness,
        faults=_faults(plan),
        progress_s=PROGRESS_S,
    )
    arrivals = plan.arrivals()
    items = plan.workload.items(plan.seed, plan.hours, resumable=policy.resumable) if policy.offline else []
    if not policy.online:
        arrivals, items = [], items if not plan.workload.endless else []
    witness.jobs.plan(driver)
    driver.begin(
        merge(arrivals, items, key=lambda job: job.request.arrived_s),
        _backlog(plan, policy) if policy.offline and plan.workload.endless else None,
    )
    driver.run(plan.warm_s)
    before = _harvested(machine.usage)
    driver.run(plan.seconds)
    tokens, usage, busy = _harvested(machine.usage) - before, machine.usage, machine.usage.row_s
    result = Result(
        served=witness.served,
        refused=witness.refused,
        offline_tokens_per_s=tokens / (plan.seconds - plan.warm_s),
        busy_ratio=busy / (plan.slots * plan.seconds),
        idle_ratio=1 - usage.busy_s / plan.seconds,
        offline_rows=usage.offline_tokens / max(1, machine.iterations),
        wasted_ratio=_wasted(usage, plan.profile),
        redone_ratio=usage.discarded_tokens / max(1, usage.offline_tokens),
        shared_ratio=_shared(usage),
        preemptions=witness.preemptions,
        victims_least=witness.victims_least,
        promise=witness.promise,
        starvation_gap_s=witness.offline_gap_s(plan.seconds),
        gaps_s=usage.online_gaps_s,
        jobs=list(witness.jobs.kept.values()),
        sha256=witness.sha256(),
        requests=witness.requests,
        events=driver.events,
    )
    _drain(driver, plan.seconds + DRAIN_S, to_the_end=bool(witness.jobs.kept))
    result.refused = witness.refused
    return result


def _drain(driver: SimulatedDriver, until_s: float, *, to_the_end: bool) -> None:
    """Nothing new comes, and online requests get their answer. With jobs, what ends by `until_s` counts for them."""
    driver.calm()
    driver.answer_online(until_s)
    if to_the_end:
        driver.run(until_s)


def _machine(plan: RunPlan, policy: Policy) -> Machine:
    settings = BatcherSettings(
        max_batch_size=plan.slots,
        max_num_tokens=max(CHUNK_TOKENS, plan.slots + CHUNK_TOKENS // 2),
        max_seq_len=plan.tokens_max,
        kv_tokens_max=plan.kv_tokens_max,
        kv_cache_reuse=plan.workload.engine.kv_reuse,
    )
    rng = default_rng(SeedSequence([plan.seed, 9]))
    machine = Machine(settings, plan.profile, policy.prices, plan.workload.engine, rng)
    if policy.queues_in_engine:
        machine.slots = NEVER
    return machine


def _faults(plan: RunPlan) -> SimulatedFaults:
    rng = default_rng(SeedSequence([plan.seed, 4]))
    return SimulatedFaults(rng, FaultRates.drawn(rng)) if plan.faults else SimulatedFaults()


def _backlog(plan: RunPlan, policy: Policy) -> Callable[[float], SimulatedRequest]:
    items = plan.workload.backlog(plan.seed, resumable=policy.resumable)

    def take(now_s: float) -> SimulatedRequest:
        job = next(items)
        return replace(job, request=replace(job.request, arrived_s=now_s))

    return take


def _harvested(usage: MachineTime) -> int:
    return usage.offline_tokens - usage.discarded_tokens


def _shared(usage: MachineTime) -> float:
    prompts = usage.shared_tokens + usage.prefill_tokens - usage.prefilled_again_tokens
    return usage.shared_tokens / prompts if prompts else 0.0


def _wasted(usage: MachineTime, profile: IterationTimes) -> float:
    """The share of the engine's time that went into prompt tokens computed before and tokens thrown away."""
    lost_ms = usage.prefilled_again_tokens * profile.prefill_token_ms + usage.discarded_tokens * profile.decode_row_ms
    return lost_ms / 1000 / usage.busy_s if usage.busy_s else 0.0
