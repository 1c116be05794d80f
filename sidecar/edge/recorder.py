"""The decision recorder: every event and the actions that answered it, in files that `sidecar replay` checks.

The event loop only appends to a bounded queue; a thread encodes, compresses and writes. A file is a segment: its first
line holds the scheduler as it stood, settings included, so that each segment can be replayed by itself; each further
line is [time, event, actions]. Old segments are deleted. What the thread cannot keep up with ends a segment instead of
leaving a gap in it.
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
import pickle
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, ClassVar

from sidecar import __version__
from sidecar.core.errors import SettingsError
from sidecar.core.events import Action, Event
from sidecar.core.record import encode
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import FORBID_UNKNOWN, require
from sidecar.core.work import Work
from sidecar.edge.ports import Outcome, Timeline

logger = logging.getLogger(__name__)
FORMAT = 1
QUEUE_MAX = 20_000  # records; at 500 events per second forty seconds of a disk that stands still
COMPRESSION = 1  # a quarter of the time of the default for four fifths of its gain, on these lines


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderSettings:
    """Where decisions are recorded, and how much of them is kept."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    directory: Path
    segment_records_max: int = 500_000  # some 15 MB compressed, half an hour of a busy engine
    segments_max: int = 16  # older ones are deleted

    def __post_init__(self) -> None:
        require(
            self.segment_records_max >= 1, f"recorder: segment_records_max must be >= 1, not {self.segment_records_max}"
        )
        require(self.segments_max >= 1, f"recorder: segments_max must be >= 1, not {self.segments_max}")


class Recorder:
    """A listener of the driver. Costs the event loop one tuple and one append per event."""

    def __init__(self, settings: RecorderSettings, scheduler: Scheduler) -> None:
        self._settings = settings
        self._scheduler = scheduler
        self._queue: queue.Queue[Any] = queue.Queue(QUEUE_MAX)
        self._recorded = 0  # in the current segment
        self._open = False
        try:
            settings.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"recorder: cannot write to {settings.directory}: {error.strerror}") from None
        self._begin()
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._thread.start()

    def handled(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """The record is queued. A full queue ends the segment; the next begins once there is room."""
        if not self._open:
            if not self._queue.empty():
                return
            self._begin()  # as things stand after this event: the next one is its first
            return
        try:
            self._queue.put_nowait((now_s, event, tuple(actions)))
        except queue.Full:
            self._open = False
            logger.warning("the recorder cannot keep up; a new segment begins when it has")
            return
        self._recorded += 1
        if self._recorded >= self._settings.segment_records_max:
            self._begin()

    def finished(self, work: Work, timeline: Timeline, outcome: Outcome) -> None:
        """Nothing: how a work ended is in the events."""

    def close(self) -> None:
        """Everything that was queued is on the disk."""
        self._queue.put(None)
        self._thread.join()

    def _begin(self) -> None:
        """A new segment, from the state of the scheduler now."""
        try:
            self._queue.put_nowait(pickle.dumps(self._scheduler))
        except queue.Full:
            self._open = False
            return
        self._open, self._recorded = True, 0

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        number, file = 1 + max((segment_number(each) for each in segments(self._settings.directory)), default=0), None
        try:
            while (record := self._queue.get()) is not None:
                if isinstance(record, bytes):
                    if file is not None:
                        file.close()
                    file, number = self._segment(number, record), number + 1
                elif file is not None:
                    now_s, event, actions = record
                    line = [now_s, encode(event), [encode(each) for each in actions]]
                    file.write(json.dumps(line, separators=(",", ":")) + "\n")
        except OSError:
            logger.exception("the recorder has stopped")
            self._open = False
        finally:
            if file is not None:
                file.close()

    def _segment(self, number: int, state: bytes) -> TextIOWrapper:
        """A new file with its header; the oldest ones beyond the bound are gone."""
        for old in segments(self._settings.directory)[: -self._settings.segments_max + 1 or None]:
            old.unlink(missing_ok=True)
        path = self._settings.directory / f"decisions-{number:06}.jsonl.gz"
        file = gzip.open(path, "wt", compresslevel=COMPRESSION, encoding="utf-8")  # noqa: SIM115 - closed by the thread
        assert isinstance(file, TextIOWrapper)
        header = {"format": FORMAT, "version": __version__, "state": base64.b64encode(state).decode()}
        file.write(json.dumps(header, separators=(",", ":")) + "\n")
        return file


def segments(directory: Path) -> list[Path]:
    """The segments in `directory`, oldest first."""
    return sorted(directory.glob("decisions-*.jsonl.gz"))


def segment_number(path: Path) -> int:
    """Which one it is."""
    return int(path.name.removeprefix("decisions-").removesuffix(".jsonl.gz"))
