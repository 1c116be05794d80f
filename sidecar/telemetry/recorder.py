"""The decision recorder: every event and the actions that answered it, in files that `sidecar replay` checks.

The event loop appends to a bounded queue; a thread encodes, compresses and writes (`segment_files.py`). Whatever goes
wrong (a full disk, a directory that is gone, a disk slower than the events) ends the segment and is said once. A new
segment begins as soon as that is possible, from the state of that moment, and says how many records are missing before
it: no segment has a gap. The driver is never held up, and the end of the process waits a bounded time.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.call import Outcome, Timeline
from sidecar.core.checkpoint import Captured, capture
from sidecar.core.errors import SettingsError
from sidecar.core.events import Action, Arrived, Event, Failed, Progressed
from sidecar.core.record import encode
from sidecar.core.request import Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.settings.recorder import RecorderSettings
from sidecar.telemetry.segment_files import SegmentFiles, line
from sidecar.telemetry.tracing import no_trace

logger = logging.getLogger(__name__)
QUEUE_MAX = 20_000  # records; at 500 events per second forty seconds of a disk that stands still
PARTS_MAX = 400_000  # of these records: actions, tokens and gaps, some 100 bytes each
BATCH = 64  # records between two moments in which the event loop may have the interpreter
POLL_S = 0.1  # how often the thread looks: waking it for each event would cost the event loop more than the record
RETRY_S = 10.0  # after a failure
CLOSE_TIMEOUT_S = 5.0  # a disk that hangs must not hold up the end of the process


@dataclass(frozen=True, slots=True)
class _Begin:
    """A segment begins here, after `missed` records that the event loop dropped, and why it did."""

    captured: Captured
    settings: SchedulerSettings
    engines: tuple[EngineSettings, ...]
    missed: int
    why: str


class Recorder:
    """A listener of the driver. Costs the event loop one tuple and one append per event."""

    def __init__(
        self,
        settings: RecorderSettings,
        scheduler: Scheduler,
        *,
        retry_s: float = RETRY_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        in_thread: bool = True,
        trace_of: Callable[[str], str] = no_trace,
    ) -> None:
        """`in_thread` False leaves it to the caller to `look` now and then. `trace_of` is `Tracing.trace_id`."""
        self._trace_of = trace_of
        self._directory = settings.directory
        self._segment_records_max = settings.segment_records_max
        self._scheduler = scheduler
        self._retry_s, self._close_timeout_s = retry_s, close_timeout_s
        self._fault = ""
        self._queue: deque[Any] = deque()  # `handled` keeps it bounded
        # Each of these is written by one of the two threads alone, so that none needs a lock.
        self._parts_in = self._missed = self._missed_ever = self._recorded = 0
        self._parts_out = self._lost = self._lost_ever = 0
        self._pending = 0  # records that the thread holds in its hands
        self._open = False  # the queue leads to a segment
        self._retry_at_s = 0.0
        self._closing = threading.Event()
        try:
            settings.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"recorder: cannot write to {settings.directory}: {error.strerror}") from None
        self._files = SegmentFiles(settings.directory, settings.segments_max, secrets.token_hex(6))
        self._begin()
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        if in_thread:
            self._thread.start()

    @property
    def state(self) -> str:
        """`running`, or `stopped: ` and why."""
        if self._open and not self._fault:
            return "running"
        return f"stopped: {self._fault or 'a new segment has not begun yet'}"

    @property
    def dropped(self) -> int:
        """Records that are in no segment, since the start."""
        return self._missed_ever + self._lost_ever

    def document(self) -> dict[str, Any]:
        """The recorder's part of the status document."""
        return {"state": self.state, "directory": str(self._directory), "dropped": self.dropped}

    def handled(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """The record is queued, or counted as dropped while there is no segment for it."""
        if not self._open:
            self._miss()
            if not self._queue and time.monotonic() >= self._retry_at_s:
                self._begin()  # as things stand after this event: the next one is its first
            return
        parts = 1 + len(actions)
        if type(event) is Progressed:
            parts += len(event.tokens) + len(event.gaps_s)
        elif type(event) is Failed:
            parts += len(event.reason) >> 6
        if len(self._queue) >= QUEUE_MAX or self._parts_in - self._parts_out + parts > PARTS_MAX:
            self._open = False
            self._miss()
            self._stopped("the disk does not keep up with the events")
            return
        trace_id = self._trace_of(event.request.id) if type(event) is Arrived else ""
        self._queue.append((now_s, event, tuple(actions), parts, trace_id))
        self._parts_in += parts
        self._recorded += 1
        if self._recorded >= self._segment_records_max:
            self._begin()

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        """Nothing: how a request ended is in the events."""

    def close(self) -> None:
        """Everything that was queued is on the disk, or the time for that is over."""
        self._closing.set()
        if self._thread.ident is None:
            self._write()
            return
        self._thread.join(self._close_timeout_s)
        if self._thread.is_alive():
            logger.warning("the recorder could not write %d records; the disk hangs", len(self._queue))

    # ---- the event loop's half ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A new segment, from the state of the scheduler now."""
        try:
            begin = _Begin(capture(self._scheduler), *self._scheduler.settings, self._missed, self._fault)
        except Exception as error:  # a listener must not raise; a state that cannot be recorded is the recorder's alone
            self._open = False
            self._stopped(f"{type(error).__name__}: {error}")
            return
        self._queue.append(begin)
        self._open, self._recorded, self._missed = True, 0, 0

    def _miss(self) -> None:
        self._missed += 1
        self._missed_ever += 1

    def _stopped(self, why: str) -> None:
        """Nothing is recorded for now: said once, however often it is tried again. Called by both threads."""
        self._retry_at_s = time.monotonic() + self._retry_s
        if not self._fault:
            logger.warning("the recorder has stopped: %s; it tries again every %g s", why, self._retry_s)
        self._fault = why

    # ---- the thread's half -------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """What is queued goes into segments, until `close`."""
        while not self._closing.wait(POLL_S):
            self.look()
        self.look()
        self._guarded(lambda: self._files.end(None))

    def look(self) -> None:
        """What was queued until now is in its segment, or counted as lost."""
        while not self._guarded(self._drain) and self._queue:
            pass  # the rest has no segment any more, and is counted

    def _guarded(self, step: Callable[[], None]) -> bool:
        """True if `step` is done; else the segment is given up, and the event loop begins another one later."""
        try:
            step()
            return True
        except Exception as error:  # a full disk, a defect: either way it stays with the recorder
            self._open = False
            self._lose(self._pending + self._files.give_up())
            self._pending = 0
            self._stopped((isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}")
            return False

    def _drain(self) -> None:
        lines: list[bytes] = []
        while self._queue:
            taken = self._queue.popleft()
            if isinstance(taken, _Begin):
                self._put(lines)
                lines = []
                self._begin_file(taken)
                continue
            now_s, event, actions, parts, trace_id = taken
            self._parts_out += parts
            if not self._files.is_open:
                self._lose(1)
                continue
            self._pending += 1
            trace = [trace_id] if trace_id else []
            lines.append(line([now_s, encode(event), [encode(each) for each in actions], *trace]))
            if len(lines) >= BATCH:
                self._put(lines)
                lines = []
                time.sleep(0)
        self._put(lines)
        if not self._open:
            self._files.end(self._fault)
        self._files.flush_if_due()

    def _put(self, lines: list[bytes]) -> None:
        self._files.write(lines)
        self._pending -= len(lines)

    def _lose(self, records: int) -> None:
        self._lost += records
        self._lost_ever += records

    def _begin_file(self, begin: _Begin) -> None:
        self._lost += begin.missed
        records = self._lost
        missing = {"records": records, "why": begin.why} if records else None
        self._files.begin(begin.captured, begin.settings, begin.engines, missing)
        self._lost = 0
        if self._fault and self._open:  # else it has stopped again meanwhile
            logger.info("the recorder writes again, to %s; up to %d records are missing", self._files.path, records)
            self._fault = ""
