"""What a recording of the decision recorder tells about the world: who came, how long outputs were, how fast engines.

None of it depends on how the scheduler decided, so it can be run again under other settings (`sidecar/sim/whatif.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from sidecar.core.events import (
    Action,
    Arrived,
    Cancelled,
    Dispatch,
    Ended,
    Event,
    Lost,
    Measured,
    Stopped,
)
from sidecar.core.request import EndReason, Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.sim.gaps import GapFit
from sidecar.sim.recorded_figures import RecordedFigures
from sidecar.sim.segment import Record, RecordingError
from sidecar.sim.workloads import SimulatedRequest


@dataclass(slots=True, kw_only=True)
class Recording:
    """The world of one recording. Times in seconds since its beginning."""

    settings: SchedulerSettings
    engines: tuple[EngineSettings, ...]
    jobs: list[SimulatedRequest]  # by arrival; what was alive at the beginning arrives then
    cancels: list[tuple[float, str]]
    seconds: float
    records: int
    gaps: GapFit
    figures: dict[str, Any]  # its own, see recorded_figures.py


@dataclass(slots=True)
class _Seen:
    request: Request
    tokens: int = 0  # kept so far
    complete: bool = False


def read(scheduler: Scheduler, records: Iterable[Record]) -> Recording:
    """Everything between the state `scheduler` and the last record. Raises RecordingError for records out of order."""
    settings, engines = scheduler.settings
    reader = _Reader(engines)
    reader.figures.begin(scheduler.alive())
    for tracked in scheduler.alive():
        left = max(1, tracked.request.output_tokens_max - tracked.generated_tokens)
        request = replace(tracked.request, prompt_tokens=tracked.context_tokens, output_tokens_max=left)
        reader.seen[request.id] = _Seen(request)
    for now_s, event, actions in records:
        reader.take(now_s, event, actions)
    return reader.recording(settings)


def of_window(
    settings: SchedulerSettings, engines: Sequence[EngineSettings], alive: Iterable[Request], records: Iterable[Record]
) -> Recording:
    """A part of a recording, before which these requests were alive. Of them nothing is known to be done."""
    reader = _Reader(tuple(engines))
    for request in alive:
        reader.seen[request.id] = _Seen(request)
    for now_s, event, actions in records:
        reader.take(now_s, event, actions)
    return reader.recording(settings)


@dataclass(slots=True, eq=False)
class _Reader:
    engines: tuple[EngineSettings, ...]
    seen: dict[str, _Seen] = field(default_factory=dict)
    filling: set[str] = field(default_factory=set)  # their dispatch only fills the cache: it brings no token
    cancels: list[tuple[float, str]] = field(default_factory=list)
    kv_tokens: dict[str, int] = field(default_factory=dict)  # by engine, as its gauges said
    begin_s: float | None = None
    last_s: float = 0.0
    records: int = 0
    gaps: GapFit = field(default_factory=GapFit)
    figures: RecordedFigures = field(default_factory=RecordedFigures)

    def take(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """One more record."""
        if self.begin_s is None:
            self.begin_s = self.last_s = now_s
        if now_s < self.last_s:
            raise RecordingError(f"record {self.records}: time goes back to {now_s}; give the segments in their order")
        self.last_s, self.records = now_s, self.records + 1
        match event:
            case Arrived(request=request):
                if request.id in self.seen:
                    raise RecordingError(f"{request.id} arrives twice: these are segments of different runs")
                self.seen[request.id] = _Seen(request)
            case Ended() | Stopped() | Lost():
                self._over(event)
            case Cancelled(request_id=request_id) if request_id in self.seen:
                self.cancels.append((now_s - self.begin_s, request_id))
            case Measured(kv_blocks_max=blocks, tokens_per_block=size) if blocks and size:
                self.kv_tokens[event.engine] = blocks * size
            case _:
                pass
        self.figures.take(now_s, event, actions)
        self.gaps.take(now_s, event, actions, self._context)
        for action in actions:
            if isinstance(action, Dispatch):
                (self.filling.discard if action.prompt_tokens is None else self.filling.add)(action.request_id)

    def _over(self, event: Ended | Stopped | Lost) -> None:
        """Tokens that a dispatch brought are known, and with its last one the true length of the request."""
        found = self.seen.get(event.request_id)
        if found is None or event.request_id in self.filling:
            return
        found.tokens += event.output_tokens
        reason = event.reason if isinstance(event, Ended) else EndReason.LENGTH
        found.complete = found.request.is_complete(found.tokens, reason)
        if not found.complete and not found.request.resumable:
            found.tokens = 0

    def _context(self, request_id: str) -> int:
        found = self.seen.get(request_id)
        return found.request.prompt_tokens + found.tokens if found else 0

    def recording(self, settings: SchedulerSettings) -> Recording:
        """All that was read."""
        begin_s = self.begin_s or 0.0
        usual = {lane: self._usual_tokens(lane) for lane in Lane}
        return Recording(
            settings=settings,
            engines=tuple(
                replace(each, kv_tokens=each.kv_tokens or self.kv_tokens.get(each.name, 0)) for each in self.engines
            ),
            jobs=sorted((self._job(each, begin_s, usual) for each in self.seen.values()), key=_arrival),
            cancels=self.cancels,
            seconds=self.last_s - begin_s,
            records=self.records,
            gaps=self.gaps,
            figures=self.figures.document(self.last_s - begin_s),
        )

    def _usual_tokens(self, lane: Lane) -> int:
        known = [each.tokens for each in self.seen.values() if each.complete and each.request.lane is lane]
        return int(median(known)) if known else 1

    @staticmethod
    def _job(seen: _Seen, begin_s: float, usual: dict[Lane, int]) -> SimulatedRequest:
        """With its true length. Where the end is not in the recording: as its lane's usual, and longer than it got."""
        request, tokens = seen.request, seen.tokens
        if not seen.complete:
            tokens = max(tokens + 1, usual[request.lane])
        moved = replace(
            request,
            arrived_s=max(0.0, request.arrived_s - begin_s),
            deadline_s=request.deadline_s - begin_s,
            prompt_tokens=max(1, request.prompt_tokens),
        )
        return SimulatedRequest(request=moved, output_tokens=max(1, min(tokens, request.output_tokens_max)))


def _arrival(job: SimulatedRequest) -> float:
    return job.request.arrived_s
