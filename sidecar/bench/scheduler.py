"""What the scheduler costs: microseconds per event with few and with many items waiting, and per streamed token.

scripts/bench scheduler [--events N] [--json FILE]       # FILE "-" = standard output
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from sidecar.core.events import Action, Arrived, Dispatch, Ended, EngineUp, Event, Progressed
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.work import EndReason, Lane, Work

SLOTS = 64
TICK_S = 0.01


def measure(waiting: int, events: int) -> dict[str, float]:
    """Microseconds per event while `waiting` offline items wait: a slot ends, and both lanes have somebody arrive."""
    scheduler, running = _full_engine(waiting)
    spent: list[float] = []
    for now_s, event in _traffic(running, events):
        began = time.perf_counter()
        actions = scheduler.handle(event, now_s)
        scheduler.next_deadline_s()
        spent.append((time.perf_counter() - began) * 1e6)
        _follow(actions, running)
    return {"mean": round(statistics.fmean(spent), 2), "p99": round(statistics.quantiles(spent, n=100)[98], 2)}


def measure_tokens(ticks: int) -> float:
    """Microseconds per streamed token: 64 streams, one token each per tick of 10 ms."""
    scheduler, running = _full_engine(100)
    event = Progressed(engine="e", tokens=tuple((work_id, 1) for work_id in running), gaps_s=(0.01,) * len(running))
    began = time.perf_counter()
    for tick in range(ticks):
        scheduler.handle(event, 1.0 + tick * TICK_S)
    return round((time.perf_counter() - began) * 1e6 / (ticks * len(running)), 3)


def _full_engine(waiting: int) -> tuple[Scheduler, deque[str]]:
    """An engine all of whose slots are taken, before `waiting` offline items; and who runs on it."""
    settings = SchedulerSettings(window_ms=0.0, offline_queue_max=waiting + 1000, offline_queue_low=waiting)
    scheduler = Scheduler(settings, [EngineSettings(name="e", slots=SLOTS)])
    running: deque[str] = deque()
    scheduler.handle(EngineUp(engine="e"), 0.0)
    for number in range(waiting + SLOTS):
        _follow(scheduler.handle(Arrived(work=_work(f"b{number}", Lane.OFFLINE, number * 1e-6)), 0.1), running)
    return scheduler, running


def _traffic(running: deque[str], events: int) -> Iterator[tuple[float, Event]]:
    """Online and offline arrivals in turn, and an end after each; what runs has been dispatched before it ends."""
    now_s = 1.0
    for number in range(events // 2):
        now_s += 0.005
        lane = Lane.ONLINE if number % 2 else Lane.OFFLINE
        yield now_s, Arrived(work=_work(f"n{number}", lane, now_s))
        yield now_s, Ended(work_id=running.popleft(), reason=EndReason.END_ID, output_tokens=10)


def _follow(actions: list[Action], running: deque[str]) -> None:
    running.extend(action.work_id for action in actions if isinstance(action, Dispatch))


def _work(name: str, lane: Lane, now_s: float) -> Work:
    return Work(id=name, lane=lane, model="tensorrt_llm", arrived_s=now_s, prompt_tokens=200, output_tokens_max=400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000, help="events per measurement")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - = standard output")
    options = parser.parse_args()
    figures = {
        "us_per_event": {str(waiting): measure(waiting, options.events) for waiting in (100, 100_000)},
        "us_per_token": measure_tokens(max(1, options.events // SLOTS)),
        "ran_on": {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()},
    }
    text = json.dumps(figures, indent=2)
    if options.json and options.json != "-":
        Path(options.json).write_text(text + "\n")
    else:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
