"""Random worlds against the scheduler: arrivals, cancels, failures, losses, engines that die, stops.

Each seed first lives through its faults with every invariant checked after each step (safety); then the faults stop,
and everything must drain (liveness). The rates of the faults are drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import get_args

import pytest
from numpy.random import Generator, default_rng

from sidecar.core.events import Action, Event
from sidecar.core.invariants import Invariants
from sidecar.core.request import Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, OnDeadline, ReservationMode, SchedulerSettings, TenantSettings
from sidecar.inflight.batch import BatcherSettings
from sidecar.inflight.profile import profile_named
from sidecar.sim.driver import Observer, SimulatedDriver
from sidecar.sim.faults import FaultRates, SimulatedFaults
from sidecar.sim.machine import Machine, Prices
from sidecar.sim.workloads import SimulatedRequest

SEEDS, BLOCK = 120, 40
STORM_S = 1.5
CALM_S = 600.0  # more than the longest back-off, down time and generation together
MODELS = ("big", "small")
KV_TOKENS = 8192  # tight: four of the longest sequences


class Watch(Observer):
    """Every invariant after each step, and which actions occurred."""

    def __init__(self, invariants: Invariants, scheduler: Scheduler) -> None:
        self.invariants, self.scheduler = invariants, scheduler
        self.actions: set[type[Action]] = set()

    def decided(self, event: Event, actions: Sequence[Action], driver: SimulatedDriver) -> None:
        self.actions |= {type(each) for each in actions}
        self.invariants.observe(event, actions, driver.now_s)
        self.invariants.check(self.scheduler.snapshot())


def world(seed: int) -> tuple[SimulatedDriver, Watch]:
    """One scheduler, one to three engines and a weather, all drawn from `seed`."""
    rng = default_rng(seed)
    settings = SchedulerSettings(
        reservation_every=int(rng.integers(2, 12)),
        reserved_saved_max=int(rng.integers(1, 3)),
        window_ms=float(rng.choice([0, 15, 200])),
        online_queue_max=int(rng.choice([2, 20, 1000])),
        offline_queue_max=int(rng.choice([4, 30])),
        offline_queue_low=int(rng.integers(0, 4)),
        attempts_max=int(rng.integers(1, 5)),
        retry_backoff_s=float(rng.choice([0, 0.5])),
        slice_tokens=int(rng.choice([0, 8, 64])),
        slice_tokens_busy=int(rng.choice([0, 4, 32])),
        preempt=bool(rng.random() < 0.7),
        preempt_quantum_tokens=int(rng.choice([0, 16])),
        preempt_sticky_after=int(rng.integers(1, 4)),
        offline_prefill_tokens=int(rng.choice([0, 128, 512])),
        reservation_mode=ReservationMode(rng.choice(list(ReservationMode))),
        postpone_max_s=float(rng.choice([0, 5])),
        on_deadline=OnDeadline(rng.choice(list(OnDeadline))),
        prefix_group_window=int(rng.choice([0, 3, 128])),
        prefix_group_s=float(rng.choice([0.1, 60])),
        tenants={"capped": TenantSettings(slots_max=int(rng.integers(1, 3)), waiting_max=int(rng.choice([0, 5])))},
    )
    engines = [engine(rng, number) for number in range(int(rng.integers(1, 4)))]
    scheduler = Scheduler(settings, engines)
    watch = Watch(Invariants(settings, engines), scheduler)
    driver = SimulatedDriver(
        scheduler=scheduler,
        machines={each.name: machine(each) for each in engines},
        observer=watch,
        faults=SimulatedFaults(rng, FaultRates.drawn(rng)),
    )
    driver.begin(iter(online(rng)), backlog(rng))
    return driver, watch


def engine(rng: Generator, number: int) -> EngineSettings:
    slots = int(rng.integers(1, 7))
    return EngineSettings(
        name=f"e{number}",
        model=MODELS[number % 2 * int(rng.integers(0, 2))],
        slots=slots,
        slots_online_min=int(rng.integers(0, slots)) if rng.random() < 0.3 else 0,
        kv_tokens=KV_TOKENS,
        yield_rows=int(rng.integers(0, slots + 1)) if rng.random() < 0.5 else "auto",
        prefill_slice_tokens=int(rng.choice([0, 128])),
        lost_hold_s=0.25,  # the stop is seen after 10 ms; then two iterations of at most 110 ms
    )


def machine(settings: EngineSettings) -> Machine:
    shape = BatcherSettings(
        max_batch_size=settings.slots, max_num_tokens=512, max_seq_len=settings.tokens_max, kv_tokens_max=KV_TOKENS
    )
    return Machine(shape, profile_named("70b-tp4-a100"), Prices())


def online(rng: Generator) -> list[SimulatedRequest]:
    rate = float(rng.choice([1, 10, 30]))
    times = sorted(rng.uniform(0, STORM_S, rng.poisson(rate * STORM_S)).tolist())
    return [job(rng, f"o{n}", Lane.ONLINE, at_s, wide=True) for n, at_s in enumerate(times)]


def backlog(rng: Generator) -> Callable[[float], SimulatedRequest]:
    numbers, wide = iter(range(10**9)), bool(rng.random() < 0.3)
    return lambda now_s: job(rng, f"b{next(numbers)}", Lane.OFFLINE, now_s, wide=wide)


def job(rng: Generator, name: str, lane: Lane, at_s: float, *, wide: bool) -> SimulatedRequest:
    output_max = int(rng.integers(1, 120))
    request = Request(
        id=name,
        lane=lane,
        model=MODELS[int(rng.random() < 0.1)],
        arrived_s=at_s,
        prompt_tokens=int(rng.integers(1, 2000)),
        output_tokens_max=output_max,
        deadline_s=at_s + float(rng.choice([inf, inf, 0.0, 1.0, 30.0])),
        tenant=str(rng.choice(["capped", "default", f"t{rng.integers(0, 50)}"])),
        job=str(rng.choice(["", "weekly", f"j{rng.integers(0, 500)}"])),
        prefix_key=str(rng.choice(["", "p", "q"])),
        slots=int(rng.integers(1, 4)) if wide and rng.random() < 0.2 else 1,
        resumable=bool(rng.random() < 0.8),
    )
    return SimulatedRequest(request=request, output_tokens=int(rng.integers(1, output_max + 1)))


def live(seed: int) -> set[type[Action]]:
    """Storm, then calm: everything drains, by itself or because the sidecar closes."""
    driver, watch = world(seed)
    driver.run(STORM_S)
    driver.calm()
    if seed % 3 == 0:
        driver.close()
    driver.run(STORM_S + CALM_S)
    assert not driver.alive, f"left after {CALM_S} s of calm: {list(driver.alive.values())[:3]}"
    watch.invariants.check_drained()
    return watch.actions


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))  # blocks, so that processes share them
def test_random_worlds_keep_every_promise_and_drain(first: int) -> None:
    seen: set[type[Action]] = set()
    for seed in range(first, first + BLOCK):
        try:
            seen |= live(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert seen == set(get_args(Action)), "an action of the union never occurred"


if __name__ == "__main__":  # one seed again, with a debugger or more prints: python -m tests.sim.test_random_seeds 17
    import sys

    print(sorted(each.__name__ for each in live(int(sys.argv[1]))))
