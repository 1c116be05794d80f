"""Whatever happens, in whatever order, the invariants hold after each step, and in the end everything drains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sidecar.core.events import (
    Arrived,
    Cancelled,
    Closing,
    Dispatch,
    Ended,
    EngineDown,
    EngineUp,
    Event,
    Failed,
    Lost,
    Measured,
    Progressed,
    Stopped,
    Woke,
)
from sidecar.core.invariants import InvariantError, Invariants
from sidecar.core.request import EndReason, Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, OnDeadline, ReservationMode, SchedulerSettings, TenantSettings
from tests.core.builders import online, scheduler

ENGINES = ("e", "f")


class World:
    """A driver without an engine: what may happen next is drawn, and every duty of a driver is kept."""

    def __init__(
        self, scheduler_settings: SchedulerSettings, engines: list[EngineSettings], draw: st.DataObject
    ) -> None:
        self.scheduler = Scheduler(scheduler_settings, engines)
        self.checker = Invariants(scheduler_settings, engines)
        self.draw: Callable[[int], int] = lambda n: draw.draw(st.integers(0, n - 1))
        self.names = [each.name for each in engines]
        self.now_s = 0.0
        self.count = 0

    def handle(self, event: Event) -> None:
        actions = self.scheduler.handle(event, self.now_s)
        self.checker.observe(event, actions, self.now_s)
        self.checker.check(self.scheduler.snapshot())

    def arrive(self, tenant: str = "") -> None:
        self.count += 1
        lane = Lane.ONLINE if self.draw(2) else Lane.OFFLINE
        deadline_s = self.now_s + (float("inf"), float("inf"), 0.5, 0.0, 30.0)[self.draw(5)]
        request = Request(
            id=f"w{self.count}",
            lane=lane,
            model="tensorrt_llm",
            arrived_s=self.now_s,
            prompt_tokens=self.draw(40),
            output_tokens_max=1 + self.draw(60),
            deadline_s=deadline_s,
            slots=(1, 1, 1, 2)[self.draw(4)],
            tenant=tenant or ("t", "t", "u", "v")[self.draw(4)],
            resumable=self.draw(5) > 0,
            splits_prompt=self.draw(5) > 0,
            job=("", "weekly", f"j{self.count}")[self.draw(3)],
            prefix_key=("", "", "p")[self.draw(3)],
        )
        self.handle(Arrived(request=request))

    def flood(self) -> None:
        """One tenant sends more than its lane holds."""
        for _ in range(12):
            self.arrive(tenant="t")

    def finish(self) -> None:
        """Some dispatch is over, in one of the four ways."""
        in_flight = [record for record in self.checker.requests.values() if record.dispatch]
        if in_flight:
            record = in_flight[self.draw(len(in_flight))]
            assert record.dispatch is not None
            self.handle(self._terminal(record.dispatch, stopped=record.aborted or record.stopping))

    def _terminal(self, dispatch: Dispatch, *, stopped: bool) -> Event:
        request_id, tokens = dispatch.request_id, self.draw(dispatch.output_tokens + 1)
        if dispatch.prompt_tokens is not None and self.draw(4):
            return Ended(request_id=request_id, reason=EndReason.LENGTH, output_tokens=0, reused_tokens=self.draw(50))
        match self.draw(8):
            case 0:
                return Failed(request_id=request_id, reason="broken", retryable=True)
            case 1:
                return Failed(request_id=request_id, reason="hopeless", retryable=False)
            case 2:
                return Lost(request_id=request_id, output_tokens=tokens)
            case 3 | 5 | 6 if stopped:
                return Stopped(request_id=request_id, output_tokens=tokens, reused_tokens=self.draw(50))
            case 4:
                return Ended(request_id=request_id, reason=EndReason.END_ID, output_tokens=tokens)
            case _:
                return Ended(request_id=request_id, reason=EndReason.LENGTH, output_tokens=dispatch.output_tokens)

    def step(self) -> None:
        """One thing happens."""
        self.now_s += (0.0, 0.004, 0.02, 0.7)[self.draw(4)]
        match self.draw(16):
            case 0 | 1 | 2 | 3 | 4:
                self.arrive()
            case 5 | 6 | 7 | 8:
                self.finish()
            case 9:
                self.handle(Cancelled(request_id=f"w{1 + self.draw(self.count + 1)}"))
            case 10:
                name = self.names[self.draw(len(self.names))]
                up = self.draw(4) > 0
                self.handle(EngineUp(engine=name) if up else EngineDown(engine=name, reason="probe failed"))
            case 11 | 12:
                self.progress()
            case 13:
                self.flood()
            case 14:
                ok, active = self.draw(3) > 0, self.draw(6)
                self.handle(
                    Measured(engine="e", ok=ok, active_requests=active, kv_blocks_max=40, kv_blocks_free=active)
                )
            case _:
                self.wake()

    def progress(self) -> None:
        """Everything in flight on an engine gives a token; for some it is the first."""
        ids = [
            request_id
            for request_id, each in self.checker.requests.items()
            if each.dispatch and each.dispatch.engine == "e"
        ]
        tokens = tuple((request_id, 1) for request_id in ids)
        first = tuple(request_id for request_id in ids if self.draw(2))
        self.handle(Progressed(engine="e", tokens=tokens, first_tokens=first, gaps_s=(0.02,) if ids else ()))

    def wake(self) -> None:
        """Time passes until the scheduler wants to be woken."""
        deadline_s = self.scheduler.next_deadline_s()
        if deadline_s is not None:
            self.now_s = max(self.now_s, deadline_s)
        self.handle(Woke())

    def drain(self) -> None:
        """Faults stop, the end is announced, and every dispatch ends."""
        for name in self.names:
            self.handle(EngineUp(engine=name))
            for _ in range(3):  # foreign load goes away
                self.handle(Measured(engine=name, ok=True, active_requests=0, kv_blocks_max=40, kv_blocks_free=40))
        self.handle(Closing())
        for _ in range(1000):  # steps; a world that does not drain must not hang
            if not self.checker.requests:
                break
            in_flight = [each.dispatch for each in self.checker.requests.values() if each.dispatch]
            if in_flight:
                tokens = 0 if in_flight[0].prompt_tokens is not None else in_flight[0].output_tokens
                self.handle(Ended(request_id=in_flight[0].request_id, reason=EndReason.LENGTH, output_tokens=tokens))
            else:
                self.now_s += 1.0
                self.handle(Woke())
        self.checker.check_drained()


@st.composite
def scenes(draw: st.DrawFn) -> tuple[SchedulerSettings, list[EngineSettings]]:
    scheduler_settings = SchedulerSettings(
        reservation_every=draw(st.integers(2, 5)),
        window_ms=draw(st.sampled_from([0.0, 15.0])),
        online_queue_max=6,
        offline_queue_max=8,
        offline_queue_low=3,
        attempts_max=3,
        losses_max=3,
        reservation_mode=draw(st.sampled_from(ReservationMode)),
        postpone_max_s=1.0,
        headroom_share_max=draw(st.sampled_from([0.0, 0.5])),
        slice_tokens=draw(st.sampled_from([0, 7, 20])),
        preempt=draw(st.booleans()),
        preempt_quantum_tokens=2,
        offline_prefill_tokens=draw(st.sampled_from([0, 30])),
        long_prompt_tokens=draw(st.sampled_from([0, 20])),
        on_deadline=draw(st.sampled_from(OnDeadline)),
        prefix_group_window=draw(st.sampled_from([0, 3, 100])),
        prefix_group_s=draw(st.sampled_from([0.0, 1.0])),
        tenant_fairness=draw(st.booleans()),
        tenants={
            "u": TenantSettings(weight=3.0, waiting_max=draw(st.integers(0, 2)), slots_max=draw(st.integers(0, 1)))
        },
    )
    engines = [
        EngineSettings(
            name=name,
            slots=draw(st.integers(2, 4)),
            slots_online_min=draw(st.integers(0, 2)),
            tokens_max=draw(st.sampled_from([60, 90])),
            prefill_slice_tokens=draw(st.sampled_from([None, 0, 1, 8])),
        )
        for name in ENGINES[: draw(st.integers(1, 2))]
    ]
    return scheduler_settings, engines


# Shrinking a run of a hundred steps takes minutes; the message of the broken invariant says enough.
@pytest.mark.slow
@settings(max_examples=150, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(scenes(), st.data())
def test_invariants_hold_after_each_step_and_everything_drains(
    scene: tuple[SchedulerSettings, list[EngineSettings]], data: st.DataObject
) -> None:
    world = World(*scene, data)
    for name in world.names:
        world.handle(EngineUp(engine=name))
    for _ in range(data.draw(st.integers(20, 120))):
        world.step()
    world.drain()


def test_the_checker_notices_a_second_terminal_event() -> None:
    checker = Invariants(SchedulerSettings(), [EngineSettings(name="e")])
    with pytest.raises(InvariantError, match="a second terminal event for w1"):
        checker.observe(Ended(request_id="w1", reason=EndReason.END_ID, output_tokens=1), [], 0.0)


def test_the_checker_notices_an_oversubscribed_engine() -> None:
    checker = Invariants(SchedulerSettings(), [EngineSettings(name="e", slots=1)])
    checker.observe(EngineUp(engine="e"), [], 0.0)
    generous = scheduler(slots=2)
    first, second = Arrived(request=online("a1")), Arrived(request=online("a2"))
    checker.observe(first, generous.handle(first, 0.0), 0.0)
    actions = generous.handle(second, 0.0)
    with pytest.raises(InvariantError, match="engine e oversubscribed by a2"):
        checker.observe(second, actions, 0.0)
