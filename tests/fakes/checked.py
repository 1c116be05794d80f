"""The simulator's invariant checker, riding along with the production driver, and the books at the end of a test."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from sidecar.call import Outcome, Timeline
from sidecar.core.events import Action, Event
from sidecar.core.invariants import InvariantError, Invariants
from sidecar.core.request import Lane, Request
from sidecar.core.scheduler import Scheduler


class Checked:
    """A Listener that keeps the books of an observer. What it finds is raised by `check_idle`, which ends each test:
    what a listener raises is contained by the driver."""

    def __init__(self, scheduler: Scheduler) -> None:
        settings, engines = scheduler.settings
        self._scheduler = scheduler
        self._invariants = Invariants(settings, engines)
        self._found: list[str] = []

    def handled(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        try:
            self._invariants.observe(event, actions, now_s)
            self._invariants.check(self._scheduler.snapshot())
        except (InvariantError, KeyError, AssertionError):
            self._found.append(f"after {type(event).__name__}: {traceback.format_exc(limit=-2)}")

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        del request, timeline, outcome

    def check_idle(self) -> None:
        """Raise AssertionError if a promise was broken, or if a counter of an idle engine is not 0."""
        assert not self._found, "\n".join(self._found[:3])
        self._invariants.check_drained()
        snapshot = self._scheduler.snapshot()
        assert snapshot.in_flight == 0
        for engine in snapshot.engines.values():
            counters = {
                "slots": engine.slots_busy,
                "draining": engine.slots_draining,
                "kv": engine.kv_tokens,
                **{f"prefill {lane}": engine.prefill_tokens[lane] for lane in Lane},
            }
            assert not any(counters.values()), f"idle engine {engine.name}: {counters}"
