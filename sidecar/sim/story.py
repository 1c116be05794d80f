"""What a recording says of one request: its own events, and who was in the engine with it.

An hour of records is a million events. Only arrivals are read in full, to find the request and to know whose the others
are; the rest is read from some seconds before it came until it was over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from sidecar.core.events import (
    Action,
    Arrived,
    Dispatch,
    Ended,
    Event,
    Failed,
    Finished,
    Lost,
    Measured,
    Preempt,
    Progressed,
    Stopped,
)
from sidecar.core.record import RecordError, decode_action, decode_as, decode_event
from sidecar.core.request import DispatchKind, Lane, Request
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.sim.segment import Record, RecordingError, opened

BEFORE_S = 30.0  # of the recording before the request, from which usual times are learnt
ARRIVAL = b'["Arrived",'
HEAD_BYTES = 48  # within which the kind of an event stands
SILENCE_LEAST_S = 0.15  # an engine that gives nobody a token for so long, and for
SILENCE_TIMES = 6.0  # so many times its usual gap, stands still


@dataclass(slots=True, eq=False)
class Stay:
    """One dispatch of anybody, as far as the records show it."""

    request_id: str
    lane: Lane
    owner: str  # the job, else the tenant
    prompt_tokens: int
    begun_s: float
    kind: str = ""
    slots: int = 1
    first_s: float | None = None
    ended_s: float | None = None
    tokens: int = 0
    how: str = ""  # what ended it
    reused_tokens: int = 0

    def overlap_s(self, begin_s: float, end_s: float) -> float:
        """For how long it was there between the two."""
        until_s = end_s if self.ended_s is None else min(end_s, self.ended_s)
        return max(0.0, until_s - max(begin_s, self.begun_s))

    def prefill_share(self, begin_s: float, end_s: float) -> float:
        """Which part of its prompt was computed between the two, as if evenly from its dispatch to its first token."""
        until_s = self.first_s or self.ended_s or end_s
        long_s = max(until_s - self.begun_s, 1e-9)
        return max(0.0, min(until_s, end_s) - max(self.begun_s, begin_s)) / long_s


@dataclass(slots=True, eq=False)
class Story:
    """One request, and the time around it. Times as in the records."""

    request: Request
    trace_id: str
    engine: str = ""
    stays: list[Stay] = field(default_factory=list)  # its own
    others: list[Stay] = field(default_factory=list)  # on any engine, while it was alive or a little before
    stops: dict[str, float | None] = field(default_factory=dict)  # told to stop while it waited, and when each had
    at_arrival: tuple[Stay, ...] = ()
    silences: list[tuple[float, float]] = field(default_factory=list)  # of its engine, while somebody decoded there
    foreign: int = 0  # the most requests that were not ours
    usual_gap_s: float = 0.0
    end_s: float = 0.0
    outcome: Any = None
    records: list[Record] = field(default_factory=list)
    alive: tuple[Request, ...] = ()  # when the records begin

    @property
    def first_token_s(self) -> float | None:
        """When its first token came, if it did."""
        return next((each.first_s for each in self.stays if each.first_s is not None), None)


@dataclass(slots=True, kw_only=True)
class Scanned:
    """The lines of a recording, and what stands in its arrivals."""

    settings: SchedulerSettings
    engines: tuple[EngineSettings, ...]
    wall_s: float | None
    lines: list[bytes] = field(default_factory=list)
    requests: dict[str, Request] = field(default_factory=dict)
    arrivals: dict[str, int] = field(default_factory=dict)  # the number of the line
    traces: dict[str, list[str]] = field(default_factory=dict)  # the requests of a trace

    def ids(self, wanted: str) -> Sequence[str]:
        """The requests that `wanted` names: itself, or those of the trace. Raises RecordingError if it names none."""
        found = [wanted] if wanted in self.arrivals else self.traces.get(wanted.lower(), [])
        if not found:
            known = f"{len(self.arrivals):,} requests arrive in it"
            raise RecordingError(f"no request and no trace {wanted[:64]!r} in the recording; {known}")
        return found


def scan(paths: Sequence[Path]) -> Scanned:
    """Read the recording once. Raises RecordingError where it is none, or where an arrival is none."""
    segments = [opened(each) for each in paths]
    header = segments[0].header
    scanned = Scanned(settings=header.settings, engines=header.engines, wall_s=header.wall_s)
    for segment in segments:
        for tracked in segment.scheduler().alive():
            scanned.requests.setdefault(tracked.request.id, tracked.request)
        for raw in segment.raw():
            if ARRIVAL in raw[:HEAD_BYTES]:
                try:
                    plain = json.loads(raw)
                    request = decode_as(Request, plain[1][1])
                except (ValueError, LookupError, TypeError, RecordError) as error:
                    raise RecordingError(f"{segment.path}: an arrival cannot be read: {error}") from None
                scanned.requests[request.id] = request
                scanned.arrivals[request.id] = len(scanned.lines)
                if len(plain) > 3:
                    scanned.traces.setdefault(str(plain[3]), []).append(request.id)
            scanned.lines.append(raw)
    return scanned


def told(scanned: Scanned, request_id: str) -> Story:
    """The story of one request that arrives in the recording. Raises RecordingError."""
    at = scanned.arrivals[request_id]
    request = scanned.requests[request_id]
    trace_id = next((trace for trace, ids in scanned.traces.items() if request_id in ids), "")
    first = at
    while first and _time(scanned.lines[first - 1]) >= _time(scanned.lines[at]) - BEFORE_S:
        first -= 1
    story = Story(request, trace_id, alive=tuple(_alive(scanned, first)))
    walk = _Walk(scanned, story)
    for raw in scanned.lines[first:]:
        if raw.startswith(b"{"):
            continue  # the last line of a segment
        if walk.take(*_record(raw)):
            break
    walk.close()
    return story


def _alive(scanned: Scanned, first: int) -> Iterator[Request]:
    """The requests that had arrived before that line, and were not over."""
    before = {each for each, at in scanned.arrivals.items() if at < first} | (
        scanned.requests.keys() - scanned.arrivals.keys()
    )
    for raw in scanned.lines[:first]:
        if b'"Finished"' in raw:
            before -= {each[1] for each in json.loads(raw)[2] if each[0] == "Finished"}
    yield from sorted((scanned.requests[each] for each in before), key=lambda each: each.arrived_s)


def _time(raw: bytes) -> float:
    try:
        return float(raw[1 : raw.index(b",")])
    except ValueError:
        return float("-inf") if raw.startswith(b"[") else float("inf")


def _record(raw: bytes) -> Record:
    try:
        plain = json.loads(raw)
        return float(plain[0]), decode_event(plain[1]), tuple([decode_action(each) for each in plain[2]])
    except (ValueError, LookupError, TypeError, RecordError) as error:
        raise RecordingError(f"a record cannot be read: {error}") from None


class _Walk:
    """Goes through the records around one request."""

    def __init__(self, scanned: Scanned, story: Story) -> None:
        self._requests: Mapping[str, Request] = scanned.requests
        self._story = story
        self._running: dict[str, Stay] = {}
        self._gaps: list[float] = []
        self._progress_s: dict[str, float] = {}  # by engine: when somebody there last got a token
        self._engine_of: dict[str, str] = {}
        self._silences: dict[str, list[tuple[float, float]]] = {}

    def take(self, now_s: float, event: Event, actions: Sequence[Action]) -> bool:
        """One record. True if the request is over with it."""
        story, mine = self._story, self._story.request.id
        story.records.append((now_s, event, actions))
        match event:
            case Progressed():
                self._progressed(now_s, event)
            case Arrived(request=request) if request.id == mine:
                story.at_arrival = tuple(self._running.values())
            case Ended() | Stopped() | Failed() | Lost():
                self._ended(now_s, event)
            case Measured(active_requests=int(active), engine=engine):
                ours = sum(self._engine_of.get(each) == engine for each in self._running)
                if self._alive_at(now_s):
                    story.foreign = max(story.foreign, active - ours)
            case _:
                pass
        over = False
        for action in actions:
            match action:
                case Dispatch():
                    self._dispatched(now_s, action)
                case Preempt(request_id=request_id) if self._alive_at(now_s) and not story.stays:
                    story.stops[request_id] = None
                case Finished(request_id=request_id, outcome=outcome) if request_id == mine:
                    story.outcome, story.end_s, over = outcome, now_s, True
                case _:
                    pass
        return over

    def close(self) -> None:
        """All records are read."""
        story = self._story
        story.end_s = story.end_s or (story.records[-1][0] if story.records else story.request.arrived_s)
        story.usual_gap_s = median(self._gaps) if self._gaps else 0.0
        least_s = max(SILENCE_LEAST_S, SILENCE_TIMES * story.usual_gap_s)
        story.silences = [
            (begin_s, end_s)
            for begin_s, end_s in self._silences.get(story.engine, ())
            if end_s - begin_s >= least_s and end_s > story.request.arrived_s and begin_s < story.end_s
        ]

    def _alive_at(self, now_s: float) -> bool:
        return now_s >= self._story.request.arrived_s

    def _dispatched(self, now_s: float, action: Dispatch) -> None:
        if (request := self._requests.get(action.request_id)) is None:
            return
        self._engine_of[request.id] = action.engine
        sent = request.prompt_tokens if action.prompt_tokens is None else action.prompt_tokens
        kind = "reserved" if action.kind is DispatchKind.RESERVED else str(action.kind)
        stay = Stay(request.id, request.lane, request.job or request.tenant, sent, now_s, kind, action.slots)
        self._running[request.id] = stay
        if request.id == self._story.request.id:
            self._story.stays.append(stay)
            self._story.engine = action.engine
        else:
            self._story.others.append(stay)

    def _progressed(self, now_s: float, event: Progressed) -> None:
        self._gaps += event.gaps_s
        last_s = self._progress_s.get(event.engine)
        decoding = [each for each in self._running.values() if each.first_s is not None]
        if last_s is not None and any(self._engine_of.get(each.request_id) == event.engine for each in decoding):
            self._silences.setdefault(event.engine, []).append((last_s, now_s))
        self._progress_s[event.engine] = now_s
        for request_id, tokens in event.tokens:
            if (stay := self._running.get(request_id)) is None:
                stay = self._seen(request_id, now_s, event.engine)
            if stay is not None:
                stay.tokens += tokens
        for request_id in event.first_tokens:
            if (stay := self._running.get(request_id)) is not None:
                stay.first_s = now_s

    def _seen(self, request_id: str, now_s: float, engine: str) -> Stay | None:
        """A request that was dispatched before the records that are read."""
        if (request := self._requests.get(request_id)) is None:
            return None
        stay = Stay(request_id, request.lane, request.job or request.tenant, 0, now_s, "", request.slots, first_s=now_s)
        self._running[request_id] = stay
        self._engine_of[request_id] = engine
        self._story.others.append(stay)
        return stay

    def _ended(self, now_s: float, event: Ended | Stopped | Failed | Lost) -> None:
        stay = self._running.pop(event.request_id, None)
        if event.request_id in self._story.stops and self._story.stops[event.request_id] is None:
            self._story.stops[event.request_id] = now_s
        if stay is None:
            return
        stay.ended_s = now_s
        stay.how = str(event.reason) if isinstance(event, Ended) else type(event).__name__.lower()
        if isinstance(event, Ended | Stopped):
            stay.tokens, stay.reused_tokens = event.output_tokens, event.reused_tokens or 0
