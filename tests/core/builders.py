"""Short ways to say which scheduler and which work a test is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sidecar.core.events import Action, Ending, EngineUp, Finished, Reject, RejectReason
from sidecar.core.request import Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings


def scheduler(*, engines: tuple[EngineSettings, ...] | None = None, slots: int = 2, **settings: Any) -> Scheduler:
    """A scheduler whose engines are up. Unless told otherwise it has one engine `e`, no yield and no window."""
    made = engines or (EngineSettings(name="e", slots=slots, yield_rows="never"),)
    built = Scheduler(SchedulerSettings(**{"window_ms": 0.0, **settings}), made)
    for engine in made:
        built.handle(EngineUp(engine=engine.name), 0.0)
    return built


def online(name: str, **fields: Any) -> Request:
    return _request(name, Lane.ONLINE, **fields)


def offline(name: str, **fields: Any) -> Request:
    return _request(name, Lane.OFFLINE, **fields)


def complete(name: str) -> Finished:
    """The end of a request that has all its output."""
    return Finished(request_id=name, outcome=Ending.COMPLETE)


def rejected(name: str, reason: RejectReason, message: str, retry_after_s: float | None = None) -> Finished:
    """The end of a request that is refused."""
    return Finished(request_id=name, outcome=Reject(reason=reason, message=message, retry_after_s=retry_after_s))


def refusal(actions: Sequence[Action]) -> tuple[str, Reject]:
    """The one request that is refused in `actions`, which hold nothing else, and why."""
    [action] = actions
    assert isinstance(action, Finished)
    assert isinstance(action.outcome, Reject)
    return action.request_id, action.outcome


def _request(name: str, lane: Lane, **fields: Any) -> Request:
    defaults: dict[str, Any] = {"prompt_tokens": 10, "output_tokens_max": 100, "arrived_s": 0.0}
    return Request(id=name, lane=lane, model="tensorrt_llm", **{**defaults, **fields})
