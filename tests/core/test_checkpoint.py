"""A scheduler that is taken apart and put together again decides as the one that went on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.core import checkpoint
from sidecar.core.checkpoint import MODULES, capture, restore
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
    Preempt,
    Progressed,
    Stopped,
    Woke,
)
from sidecar.core.record import RecordError
from sidecar.core.request import EndReason, Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings, TenantSettings

SETTINGS = SchedulerSettings(tenants={"b": TenantSettings(weight=2.0, slots_max=2)}, window_ms=0.1)
ENGINES = (
    EngineSettings(name="e0", slots=3, gpu_group="g", kv_tokens=4000, yield_rows=1),
    EngineSettings(name="e1", slots=2, gpu_group="g"),
)
# No part of a scheduler:
STATELESS = {"checkpoint", "errors", "invariants", "limits", "record", "snapshot", "__init__"}


class World:
    """A driver that does its duties and no more, over events that a list of numbers chooses."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.running: list[str] = []
        self.stopping: set[str] = set()
        self.requests = 0

    def event(self, choice: int) -> Event:
        self.now_s += (choice % 7) / 300
        if choice % 4 == 0 and self.running:
            return self._terminal(self.running.pop(choice % len(self.running)), choice)
        if choice % 4 == 1:
            return Progressed(
                engine=f"e{choice % 2}",
                tokens=tuple((each, 2) for each in self.running[:3]),
                first_tokens=tuple(self.running[:1]),
                gaps_s=(0.01, 0.1 + 0.2),
            )
        if choice % 23 == 0:
            return Measured(
                engine="e0", ok=True, active_requests=5, kv_blocks_max=99, kv_blocks_free=50, tokens_per_block=32
            )
        if choice % 29 == 0:
            return Cancelled(request_id=f"w{choice % (self.requests + 1)}")
        if choice % 31 == 0:
            return EngineDown(engine="e1", reason="gone")
        if choice % 11 == 0:
            return Woke()
        self.requests += 1
        return Arrived(request=self._request(choice))

    def _request(self, choice: int) -> Request:
        online = choice % 3 == 0
        return Request(
            id=f"w{self.requests}",
            lane=Lane.ONLINE if online else Lane.OFFLINE,
            model="tensorrt_llm",
            arrived_s=self.now_s,
            prompt_tokens=20 + choice % 500,
            output_tokens_max=1 + choice % 300,
            tenant="ab"[choice % 2],
            job="" if online else f"j{choice % 3}",
            deadline_s=self.now_s + 60 if choice % 5 == 0 else float("inf"),
            prefix_key=f"p{choice % 4}",
        )

    def _terminal(self, request_id: str, choice: int) -> Event:
        if request_id in self.stopping:
            self.stopping.discard(request_id)
            return Stopped(request_id=request_id, output_tokens=choice % 9, reused_tokens=16)
        if choice % 13 == 0:
            return Lost(request_id=request_id, output_tokens=1)
        if choice % 17 == 0:
            return Failed(request_id=request_id, reason="INTERNAL: x", retryable=choice % 2 == 0)
        return Ended(request_id=request_id, reason=EndReason.END_ID, output_tokens=choice % 9)

    def note(self, actions: Sequence[Any]) -> None:
        for action in actions:
            if isinstance(action, Dispatch):
                self.running.append(action.request_id)
            elif isinstance(action, Preempt):
                self.stopping.add(action.request_id)


def lines(scheduler: Scheduler) -> list[str]:
    return [json.dumps(each) for each in capture(scheduler).lines()]


def again(scheduler: Scheduler) -> Scheduler:
    """Through text, as in a file."""
    captured = capture(scheduler)
    return restore([json.loads(json.dumps(each)) for each in captured.lines()], len(captured.nodes))


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=120), st.integers(0, 120))
@example([1555, 0], 1)
@example([8154, 5295, 4677, 557, 1040], 4)
@example(
    [
        *(3348, 9759, 8923, 114, 3612, 7076, 9029, 8934, 8605, 9924, 7179, 7168, 6692, 5130, 8008, 568, 2092, 2764),
        *(2640, 3442, 697, 3825, 950, 0, 5137, 1328, 5112, 573, 1840),
    ],
    28,
)
@settings(max_examples=60, deadline=None)
def test_a_restored_scheduler_answers_every_further_event_as_the_first_one_does(choices: list[int], when: int) -> None:
    world, scheduler = World(), Scheduler(SETTINGS, ENGINES)
    twin = scheduler
    for engine in ENGINES:
        scheduler.handle(EngineUp(engine=engine.name), 0.0)
    for number, choice in enumerate(choices):
        if number == min(when, len(choices) - 1):
            twin = again(scheduler)
        event = world.event(choice)
        actions = scheduler.handle(event, world.now_s)
        deadline_s = scheduler.next_deadline_s()  # asked after each event, as a driver has to: it forgets what is over
        if twin is not scheduler:
            assert twin.handle(event, world.now_s) == actions
            assert twin.next_deadline_s() == deadline_s
        world.note(actions)
    assert twin.handle(Closing(), world.now_s) == scheduler.handle(Closing(), world.now_s)
    assert twin.snapshot() == scheduler.snapshot()  # what is worked out only when it is asked for is worked out by both
    assert lines(twin) == lines(scheduler)


def test_every_module_with_state_is_in_the_table() -> None:
    """Whoever adds a module to the core adds it to MODULES, or to STATELESS here if no scheduler refers to it."""
    files = {each.stem for each in Path(checkpoint.__file__).parent.glob("*.py")}
    assert {each.__name__.rpartition(".")[2] for each in MODULES} == files - STATELESS


def state() -> list[Any]:
    scheduler = Scheduler(SETTINGS, ENGINES)
    scheduler.handle(EngineUp(engine="e0"), 0.0)
    world = World()
    for choice in range(40, 80):
        scheduler.handle(world.event(choice * 4 + 2), world.now_s)
    return list(capture(scheduler).lines())


def shape_of(found: list[Any], name: str) -> int:
    """Where the shape `name` stands."""
    return next(n for n, each in enumerate(found) if isinstance(each, dict) and each["class"] == name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.__setitem__(0, {"class": "os.system", "fields": []}), "no class of this version"),
        (lambda found: found.__setitem__(0, {"class": "scheduler.Scheduler", "fields": ["handle"]}), "field"),
        (
            lambda found: found[shape_of(found, "tracked_request.TrackedRequest")]["fields"].append("more"),
            "other fields",
        ),
        (lambda found: found.__setitem__(1, [99, 1]), "no part of a state"),
        (lambda found: found.__setitem__(1, ["bytes", 1]), "no part of a state"),
        (lambda found: found[1].append(1), "fields"),
        (lambda found: found.append(["list", [0, 10**6]]), "nodes that its header names"),
        (lambda found: found.__setitem__(-1, ["list", [0, 10**6]]), "no value"),
        (lambda found: found.__setitem__(-1, ["list", ["Popen", "x"]]), "no value of this version"),
        (lambda found: found.__setitem__(-1, ["list", {"a": 1}]), "no value"),
        (lambda found: found.__setitem__(-1, ["dict", 1]), "dict"),
        (lambda found: found.__setitem__(-1, ["deque", -1]), "bound of a deque"),
        (lambda found: found.__setitem__(-1, ["count", "x"]), "no count"),
        (lambda found: found.clear(), "does not begin with a scheduler"),
    ],
)
def test_a_changed_state_is_refused_with_its_reason(change: Any, message: str) -> None:
    found = state()
    nodes = sum(isinstance(each, list) for each in found)
    change(found)

    with pytest.raises(RecordError, match=message):
        restore(found, nodes)


def test_a_field_of_another_type_is_refused() -> None:
    found = state()
    shape = shape_of(found, "tracked_request.TrackedRequest")
    number = sum(isinstance(each, dict) for each in found[:shape])
    at = found[shape]["fields"].index("generated_tokens")
    tracked = next(each for each in found if isinstance(each, list) and each[0] == number and each[0] is not False)
    tracked[1 + at] = "many"

    with pytest.raises(RecordError, match="generated_tokens"):
        restore(found, sum(isinstance(each, list) for each in found))


def test_something_without_a_plain_form_is_named() -> None:
    scheduler = Scheduler(SETTINGS, ENGINES)
    scheduler._requests.tracked_requests = {"x": object()}  # type: ignore[dict-item]

    with pytest.raises(RecordError, match="object has no place in a recording"):
        capture(scheduler)
