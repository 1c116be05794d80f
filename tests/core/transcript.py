"""Transcripts: what happens to a scheduler and what it does, in words. `python -m tests.core.transcript FILE` renders
one anew from its event lines.

A line that starts with a time is an event. The lines `→` below it are the actions, without the ends of requests that
were neither refused nor given up. `next` is when the scheduler wants to be woken if nothing happens before. Lines that
start with `#` are prose; `settings` and `engine` lines set the scene.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, assert_never

from sidecar.core.events import (
    Abort,
    Action,
    Arrived,
    Cancelled,
    Closing,
    DeadLetter,
    Dispatch,
    Ended,
    Ending,
    EngineDown,
    EngineUp,
    Event,
    Failed,
    Finished,
    Forecast,
    Lost,
    Measured,
    PauseIntake,
    Preempt,
    Progressed,
    Reject,
    ResumeIntake,
    Stopped,
    Woke,
)
from sidecar.core.invariants import Invariants
from sidecar.core.request import EndReason, Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings


def render(text: str) -> str:
    """The transcript that the scheduler of today writes for the events of `text`, prose kept."""
    scene = Scene()
    lines = [rendered for line in text.splitlines() for rendered in scene.lines(line)]
    return "\n".join(lines) + "\n"


class Scene:
    """A scheduler that reads event lines and answers in words."""

    def __init__(self) -> None:
        self._settings: dict[str, Any] = {}
        self._engines: list[EngineSettings] = []
        self._scheduler: Scheduler | None = None
        self._checker: Invariants | None = None

    def lines(self, line: str) -> list[str]:
        """`line` and, if it is an event, what comes of it; nothing for an old answer."""
        word = line.split(" ", 1)[0]
        if word == "settings":
            self._settings = values(line)
        elif word == "engine":
            self._engines.append(EngineSettings(name=line.split()[1], **{"yield_rows": "never", **values(line)}))
        elif re.match(r"[\d.]+ ", line):
            return [line, *self._step(float(word), line.split(" ", 1)[1].strip())]
        elif re.match(r" +(→|next)", line):
            return []
        return [line]

    def _step(self, now_s: float, words: str) -> list[str]:
        if self._scheduler is None or self._checker is None:
            settings = SchedulerSettings(**self._settings)
            self._scheduler = Scheduler(settings, self._engines)
            self._checker = Invariants(settings, self._engines)
        event = event_of(words, now_s)
        actions = self._scheduler.handle(event, now_s)
        self._checker.observe(event, actions, now_s)
        self._checker.check(self._scheduler.snapshot())
        told = [f"        → {in_words(each)}" for each in actions if not _is_ordinary_end(each)] or [
            "        → nothing"
        ]
        deadline_s = self._scheduler.next_deadline_s()
        return told if deadline_s is None else [*told, f"        next: {deadline_s:.3f}"]


def values(line: str) -> dict[str, Any]:
    """The `name=value` pairs of a line."""
    pairs = re.findall(r"(\w+)=(\S+)", line)
    return {name: _value(text) for name, text in pairs}


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(text, text)


def event_of(words: str, now_s: float) -> Event:
    """The event that `words` tell of."""
    reused = re.search(r"(\d+) reused", words)
    reuse = {"reused_tokens": int(reused[1])} if reused else {}
    if found := re.match(r"(online|offline) (\w+) arrives", words):
        defaults = {"prompt_tokens": 10, "output_tokens_max": 100, "model": "tensorrt_llm", "arrived_s": now_s}
        request = Request(id=found[2], lane=Lane(found[1]), **{**defaults, **values(words)})
        return Arrived(request=request)
    if found := re.match(r"(\w+) ended by (\w+) after (\d+) tokens?", words):
        return Ended(request_id=found[1], reason=EndReason(found[2]), output_tokens=int(found[3]), **reuse)
    if found := re.match(r"(\w+) stopped after (\d+) tokens?", words):
        return Stopped(request_id=found[1], output_tokens=int(found[2]), **reuse)
    if found := re.match(r"(\w+) is lost after (\d+) tokens?", words):
        return Lost(request_id=found[1], output_tokens=int(found[2]))
    if found := re.match(r"(\w+) failed( for good)?: (.+)", words):
        return Failed(request_id=found[1], reason=found[3], retryable=found[2] is None)
    if found := re.match(r"(\w+) is cancelled", words):
        return Cancelled(request_id=found[1])
    if found := re.match(r"engine (\w+) is (up|down)", words):
        return EngineUp(engine=found[1]) if found[2] == "up" else EngineDown(engine=found[1], reason="probe failed")
    if found := re.match(r"engine (\w+) streams: (.+)", words):
        pairs = re.findall(r"(\w+) \+(\d+)", found[2])
        first = tuple(re.findall(r"(\w+) \+\d+ first", found[2]))
        tokens = tuple((name, int(tokens)) for name, tokens in pairs)
        return Progressed(engine=found[1], tokens=tokens, first_tokens=first)
    if found := re.match(r"engine (\w+) is measured", words):
        return Measured(engine=found[1], ok=True, **values(words))
    if found := re.match(r"engine (\w+) cannot be measured", words):
        return Measured(engine=found[1], ok=False)
    return Woke() if words == "wake" else {"closing": Closing()}[words]


def _is_ordinary_end(action: Action) -> bool:
    return isinstance(action, Finished) and isinstance(action.outcome, Ending)


def in_words(action: Action) -> str:
    """`action` as a sentence."""
    match action:
        case Dispatch():
            slots = "" if action.slots == 1 else f", {action.slots} slots"
            kind = f"contended {action.kind}" if action.contended else action.kind
            what = f"up to {action.output_tokens} tokens"
            if action.prompt_tokens is not None:
                what = f"only the first {action.prompt_tokens} ids of the prompt"
            return (
                f"dispatch {action.request_id} to {action.engine}: {kind},"
                f" {what}{slots}, after {action.queue_wait_s:.3f} s"
            )
        case Preempt():
            return f"preempt {action.request_id} on {action.engine}"
        case Abort():
            return f"abort {action.request_id} on {action.engine}"
        case Finished(request_id=request_id, outcome=Reject() as refused):
            hint = "" if refused.retry_after_s is None else f" (retry after {refused.retry_after_s:g} s)"
            return f"reject {request_id}: {refused.reason}: {refused.message}{hint}"
        case Finished(request_id=request_id, outcome=DeadLetter() as dead):
            return f"dead letter {request_id} after {dead.attempts} attempts: {dead.reason}"
        case Finished():
            return f"{action.request_id} is {action.outcome}"
        case Forecast():
            eta = f"P50 {action.eta_p50_s:.0f} s, P90 {action.eta_p90_s:.0f} s"
            return f"job {action.job} of {action.tenant} is {action.verdict}: due at {action.deadline_s:.0f} s, {eta}"
        case PauseIntake():
            return f"pause the intake of {action.model}"
        case ResumeIntake():
            return f"resume the intake of {action.model}"
        case _:
            assert_never(action)


if __name__ == "__main__":
    sys.stdout.write(render(Path(sys.argv[1]).read_text()))
