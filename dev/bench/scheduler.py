"""What the scheduler costs: microseconds per event with few and with many items, jobs and tenants, and per token.

Means are CPU time of the thread inside `handle` and `next_deadline_s`: neither neighbours on the machine count nor this
bench's own work, and what reading the clock costs (`clock_us`) is taken off. Hosts differ: `reference_us` is what one
round of a fixed loop of pure Python takes in the same run, and `per_reference` is the cost of an event in such rounds,
which hosts can compare. The 99th percentile is wall-clock time,
event by event, and means little on a busy machine.

scripts/bench scheduler [--events N] [--json FILE]       # FILE "-" = standard output
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from dataclasses import replace
from heapq import heappop, heappush

from dev.figures import ran_on, write
from sidecar.core.events import Arrived, Dispatch, Ended, EngineUp, Event, Preempt, Progressed, Stopped
from sidecar.core.request import EndReason, Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings

SLOTS = 64
# (items that wait, jobs, tenants)
CASES = {
    "100": (100, 0, 0),
    "100000": (100_000, 0, 0),
    "1 job": (20_000, 1, 0),
    "257 jobs": (20_000, 257, 0),
    "10000 tenants": (20_000, 0, 10_000),
}
TICK_S = 0.01


class BareDriver:
    """As much of a driver and an engine as the scheduler can tell: who runs, and who was told to stop."""

    def __init__(self, waiting: int, jobs: int = 0, tenants: int = 0) -> None:
        settings = SchedulerSettings(
            offline_queue_max=waiting + 1000, offline_queue_low=waiting, offline_prefill_tokens=0
        )
        engine = EngineSettings(name="e", slots=SLOTS, prefill_slice_tokens=0, yield_rows="never")
        self.scheduler = Scheduler(settings, [engine])
        self.running: dict[str, None] = {}
        self.stopping: list[str] = []
        self.cpu_s = 0.0  # spent by the scheduler so far
        self.handle(EngineUp(engine="e"), 0.0)
        for number in range(waiting + SLOTS):
            self.handle(Arrived(request=_item(f"b{number}", number, number * 1e-6, jobs, tenants)), 0.1)

    def handle(self, event: Event, now_s: float) -> float:
        """The event is handled and obeyed; how many microseconds the scheduler took."""
        began, began_cpu_s = time.perf_counter(), time.thread_time()
        actions = self.scheduler.handle(event, now_s)
        self.scheduler.next_deadline_s()
        self.cpu_s += time.thread_time() - began_cpu_s
        spent_us = (time.perf_counter() - began) * 1e6
        for action in actions:
            if isinstance(action, Dispatch):
                self.running[action.request_id] = None
            elif isinstance(action, Preempt):
                del self.running[action.request_id]
                self.stopping.append(action.request_id)
        return spent_us


def measure_clock(readings: int = 100_000) -> float:
    """Microseconds that a pair of readings of the thread's CPU time adds to what lies between them."""
    spent_s = 0.0
    for _ in range(readings):
        began_s = time.thread_time()
        spent_s += time.thread_time() - began_s
    return spent_s * 1e6 / readings


def measure_reference(rounds: int = 100_000) -> float:
    """Microseconds of one round of a loop of pure Python that never changes: a heap, a dictionary, objects, a call."""

    class Entry:
        __slots__ = ("key", "value")

        def __init__(self, key: int) -> None:
            self.key, self.value = key, 0.0

        def grow(self, by: float) -> float:
            self.value += by
            return self.value

    entries = {number: Entry(number) for number in range(64)}
    heap = [(float(number), number) for number in range(64)]
    began_s = time.thread_time()
    for number in range(rounds):
        due, key = heappop(heap)
        entry = entries[key]
        grown = entry.grow(1.0 + number % 7)
        entries[key] = entry
        heappush(heap, (due + grown % 64.0, key))
    return (time.thread_time() - began_s) * 1e6 / rounds


def measure(waiting: int, events: int, clock_us: float = 0.0, *, jobs: int = 0, tenants: int = 0) -> dict[str, float]:
    """Microseconds per event while `waiting` offline items wait: arrivals of both lanes, stops and ends.

    The items are those of so many jobs with deadlines and of so many tenants; 0 = of none, and of the default one.
    """
    engine, now_s, number = BareDriver(waiting, jobs, tenants), 1.0, 0
    spent: list[float] = []
    gc.collect()
    gc.freeze()  # as the sidecar does with what it has loaded
    before_s = engine.cpu_s
    while len(spent) < events:
        now_s, number = now_s + 0.005, number + 1
        request = _request(f"n{number}", now_s) if number % 2 else _item(f"n{number}", number, now_s, jobs, tenants)
        spent.append(engine.handle(Arrived(request=request), now_s))
        while engine.stopping:
            spent.append(engine.handle(Stopped(request_id=engine.stopping.pop(), output_tokens=5), now_s))
        oldest = next(iter(engine.running))
        del engine.running[oldest]
        spent.append(engine.handle(Ended(request_id=oldest, reason=EndReason.END_ID, output_tokens=10), now_s))
    mean = (engine.cpu_s - before_s) * 1e6 / len(spent) - clock_us
    return {"mean": round(mean, 2), "p99": round(statistics.quantiles(spent, n=100)[98], 2)}


def measure_tokens(ticks: int) -> float:
    """Microseconds per streamed token: 64 streams, one token each per tick of 10 ms."""
    engine = BareDriver(100)
    tokens = tuple((request_id, 1) for request_id in engine.running)
    event = Progressed(engine="e", tokens=tokens, gaps_s=(TICK_S,) * len(tokens))
    cpu_s = time.process_time()
    for tick in range(ticks):
        engine.handle(event, 1.0 + tick * TICK_S)
    return round((time.process_time() - cpu_s) * 1e6 / (ticks * len(tokens)), 3)


def _request(name: str, now_s: float, lane: Lane = Lane.ONLINE) -> Request:
    return Request(id=name, lane=lane, model="tensorrt_llm", arrived_s=now_s, prompt_tokens=200, output_tokens_max=400)


def _item(name: str, number: int, now_s: float, jobs: int, tenants: int) -> Request:
    """The `number`th item: of the next job and the next tenant in turn."""
    request = _request(name, now_s, Lane.OFFLINE)
    if tenants:
        request = replace(request, tenant=f"t{number % tenants}")
    if jobs:
        request = replace(request, job=f"j{number % jobs}", deadline_s=1e5 + number % jobs)
    return request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000, help="events per measurement")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - = standard output")
    options = parser.parse_args()
    clock_us, before_us = measure_clock(), measure_reference()
    costs = {
        name: measure(waiting, options.events, clock_us, jobs=jobs, tenants=tenants)
        for name, (waiting, jobs, tenants) in CASES.items()
    }
    reference_us = (before_us + measure_reference()) / 2
    figures = {
        "us_per_event": costs,
        "reference_us": round(reference_us, 3),
        "per_reference": {name: round(each["mean"] / reference_us, 2) for name, each in costs.items()},
        "clock_us": round(clock_us, 2),
        "us_per_token": measure_tokens(max(1, options.events // SLOTS)),
        "ran_on": ran_on(),
    }
    write(figures, options.json)


if __name__ == "__main__":
    main()
