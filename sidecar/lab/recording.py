"""What a recording of the decision recorder tells about the world: who came, how long outputs were, how fast engines.

None of it depends on how the scheduler decided, so it can be run again under other settings (`sidecar/lab/whatif.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import median

from engine.profile import Profile
from sidecar.core.errors import SidecarError
from sidecar.core.events import (
    Action,
    Arrived,
    Cancelled,
    Dispatch,
    Ended,
    Event,
    Failed,
    Lost,
    Measured,
    Progressed,
    Stopped,
)
from sidecar.core.latency import Fit
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.work import EndReason, Lane, Work
from sidecar.lab.workloads import Job

WINDOW_S = 2.0  # tokens and prompts are set against time in windows, so long that few prompts straddle their edges
BUSY_LEAST = 0.9  # of a window that is used, some row was decoding
WINDOWS_MIN = 5  # fewer fit anything

Record = tuple[float, Event, Sequence[Action]]


class RecordingError(SidecarError):
    """The recording does not hold what is asked of it; the message says what is missing."""


@dataclass(slots=True, kw_only=True)
class Recording:
    """The world of one recording. Times in seconds since its beginning."""

    settings: SchedulerSettings
    engines: tuple[EngineSettings, ...]
    jobs: list[Job]  # by arrival; what was alive at the beginning arrives then
    cancels: list[tuple[float, str]]
    seconds: float
    records: int
    gaps: GapFit


@dataclass(slots=True)
class _Seen:
    work: Work
    tokens: int = 0  # kept so far
    complete: bool = False


def read(scheduler: Scheduler, records: Iterable[Record]) -> Recording:
    """Everything between the state `scheduler` and the last record. Raises RecordingError for records out of order."""
    settings, engines = scheduler.settings
    reader = _Reader(engines)
    for item in scheduler.alive():
        left = max(1, item.work.output_tokens_max - item.generated_tokens)
        work = replace(item.work, prompt_tokens=item.context_tokens, output_tokens_max=left)
        reader.seen[work.id] = _Seen(work)
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
    gaps: GapFit = field(default_factory=lambda: GapFit())

    def take(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """One more record."""
        if self.begin_s is None:
            self.begin_s = self.last_s = now_s
        if now_s < self.last_s:
            raise RecordingError(f"record {self.records}: time goes back to {now_s}; give the segments in their order")
        self.last_s, self.records = now_s, self.records + 1
        match event:
            case Arrived(work=work):
                if work.id in self.seen:
                    raise RecordingError(f"{work.id} arrives twice: these are segments of different runs")
                self.seen[work.id] = _Seen(work)
            case Ended() | Stopped() | Lost():
                self._over(event)
            case Cancelled(work_id=work_id) if work_id in self.seen:
                self.cancels.append((now_s - self.begin_s, work_id))
            case Measured(kv_blocks_max=blocks, tokens_per_block=size) if blocks and size:
                self.kv_tokens[event.engine] = blocks * size
            case _:
                pass
        self.gaps.take(now_s, event, actions, self._context)
        for action in actions:
            if isinstance(action, Dispatch):
                (self.filling.discard if action.prompt_tokens is None else self.filling.add)(action.work_id)

    def _over(self, event: Ended | Stopped | Lost) -> None:
        """Tokens that a dispatch brought are known, and with its last one the true length of the work."""
        found = self.seen.get(event.work_id)
        if found is None or event.work_id in self.filling:
            return
        found.tokens += event.output_tokens
        reason = event.reason if isinstance(event, Ended) else EndReason.LENGTH
        found.complete = found.work.is_complete(found.tokens, reason)
        if not found.complete and not found.work.resumable:
            found.tokens = 0

    def _context(self, work_id: str) -> int:
        found = self.seen.get(work_id)
        return found.work.prompt_tokens + found.tokens if found else 0

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
        )

    def _usual_tokens(self, lane: Lane) -> int:
        known = [each.tokens for each in self.seen.values() if each.complete and each.work.lane is lane]
        return int(median(known)) if known else 1

    @staticmethod
    def _job(seen: _Seen, begin_s: float, usual: dict[Lane, int]) -> Job:
        """With its true length. Where the end is not in the recording: as its lane's usual, and longer than it got."""
        work, tokens = seen.work, seen.tokens
        if not seen.complete:
            tokens = max(tokens + 1, usual[work.lane])
        moved = replace(
            work,
            arrived_s=max(0.0, work.arrived_s - begin_s),
            deadline_s=work.deadline_s - begin_s,
            prompt_tokens=max(1, work.prompt_tokens),
        )
        return Job(work=moved, output_tokens=max(1, min(tokens, work.output_tokens_max)))


def _arrival(job: Job) -> float:
    return job.work.arrived_s


# ---- iteration times -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Window:
    iteration_s: float = 0.0  # sum over those that were seen
    iterations: int = 0
    tokens: int = 0  # with a gap before them
    busy_s: float = 0.0  # with a row that decodes
    prefill_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class _Running:
    engine: str
    context: int  # sent; what the KV cache spared is known at the end
    decodes: bool = False
    window: _Window | None = None  # where its prompt was counted


@dataclass(slots=True, eq=False)
class GapFit:
    """What an iteration costs, from the gaps between tokens, in windows in which some row always decoded.

    The mean of a window is the time of an iteration; tokens ÷ iterations are the rows, and prompts that were computed
    in it divide by the iterations: one sample of `o + c · rows + p · prefill tokens`. Unlike the scheduler's own model
    it may look back, so it needs no iteration whose batch is known exactly.
    """

    windows: dict[tuple[str, int], _Window] = field(default_factory=lambda: defaultdict(_Window))
    _running: dict[str, _Running] = field(default_factory=dict)
    _decoding: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # rows by engine
    _last_s: float = 0.0
    _sampled_s: dict[str, float] = field(default_factory=dict)  # the newest iteration that was seen, by engine

    def take(self, now_s: float, event: Event, actions: Sequence[Action], context: Callable[[str], int]) -> None:
        """One more record; `context(work_id)` gives the tokens of a work as its next dispatch sends them."""
        self._pass(now_s)
        match event:
            case Progressed(engine=engine):
                self._gaps(engine, event.gaps_s, now_s)
                for work_id in event.first_tokens:
                    self._computed(work_id, now_s, decodes=True)
            case Ended():  # a piece of a prompt brings no token: it was computed when it ends
                self._computed(event.work_id, now_s, decodes=False)
                self._over(event.work_id, event.reused_tokens or 0)
            case Stopped():
                self._over(event.work_id, event.reused_tokens or 0)
            case Failed() | Lost():
                self._over(event.work_id, 0)
            case _:
                pass
        for action in actions:
            if isinstance(action, Dispatch):
                tokens = action.prompt_tokens or context(action.work_id)
                self._running[action.work_id] = _Running(engine=action.engine, context=tokens)

    def _gaps(self, engine: str, gaps_s: Sequence[float], now_s: float) -> None:
        """The gaps of a tick are of one iteration, unless they come so soon that they belong to the one before.

        Each iteration counts once: those that compute a prompt often decode few rows, and must not weigh less.
        """
        if not gaps_s:
            return
        window, gap_s = self.windows[engine, int(now_s / WINDOW_S)], median(gaps_s)
        window.tokens += len(gaps_s)
        if now_s - self._sampled_s.get(engine, -inf) >= gap_s / 2:
            self._sampled_s[engine] = now_s
            window.iteration_s += gap_s
            window.iterations += 1

    def _pass(self, now_s: float) -> None:
        """Time has passed: it counts for every engine on which a row decodes."""
        for engine, rows in self._decoding.items():
            at_s = self._last_s
            while rows and at_s < now_s:
                number = int(at_s / WINDOW_S)
                until_s = min(now_s, (number + 1) * WINDOW_S)
                until_s = until_s if until_s > at_s else now_s
                self.windows[engine, number].busy_s += until_s - at_s
                at_s = until_s
        self._last_s = now_s

    def _computed(self, work_id: str, now_s: float, *, decodes: bool) -> None:
        running = self._running.get(work_id)
        if running is None or running.window is not None:
            return
        running.window = self.windows[running.engine, int(now_s / WINDOW_S)]
        running.window.prefill_tokens += running.context
        running.decodes = decodes
        self._decoding[running.engine] += decodes

    def _over(self, work_id: str, reused_tokens: int) -> None:
        running = self._running.pop(work_id, None)
        if running is not None and running.window is not None:
            running.window.prefill_tokens -= min(reused_tokens, running.context)
            self._decoding[running.engine] -= running.decodes

    def profile(self) -> tuple[Profile, float]:
        """Iteration times, and the mean error of their samples (a fraction). Raises RecordingError: too few samples."""
        samples = list(self._samples())
        if len(samples) < WINDOWS_MIN:
            raise RecordingError(
                f"{len(samples)} windows of steady decoding are too few to learn iteration times from; name a profile"
            )
        fit = Fit(3, forgetting=1.0)
        for x, gap_ms in samples:
            fit.learn(x, gap_ms)
        overhead, row, prefill = fit.theta
        error = sum(abs(fit.predict(x) - gap_ms) / gap_ms for x, gap_ms in samples) / len(samples)
        profile = Profile(
            name="fitted",
            overhead_ms=overhead,
            decode_row_ms=row / 100,
            prefill_token_ms=prefill / 100,
        )
        return profile, error

    def _samples(self) -> Iterator[tuple[tuple[float, float, float], float]]:
        """((1, rows / 100, prefill tokens per iteration / 100), milliseconds) of each window that is steady."""
        for window in self.windows.values():
            if window.iterations and window.busy_s >= BUSY_LEAST * WINDOW_S:
                iteration_s = window.iteration_s / window.iterations
                rows, iterations = window.tokens / window.iterations, window.busy_s / iteration_s
                prefill = max(0, window.prefill_tokens) / iterations
                yield (1.0, rows / 100, prefill / 100), 1000 * iteration_s
