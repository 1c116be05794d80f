"""The files of the decision recorder: a segment is begun, written and ended; old ones are deleted.

A segment holds JSON lines, compressed, and can be replayed by itself:

    {"recording": 2, "run": …, "segment": …, "settings": …, "nodes": …, …}   the header
    …                                  the scheduler's state (`sidecar/core/checkpoint.py`)
    [time, event, [action, …]]         one line per event (`sidecar/core/record.py`)
    {"end": records, "why": …}         the last line, unless the process was killed; `why` is null in good order
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidecar import __version__
from sidecar.core.checkpoint import Captured
from sidecar.core.record import FORMAT, LINE_BYTES_MAX, encode, fingerprint
from sidecar.core.settings import EngineSettings, SchedulerSettings

logger = logging.getLogger(__name__)
COMPRESSION = 1  # a quarter of the time of the default for four fifths of its gain, on these lines
FLUSH_S = 5.0  # what a killed process loses at most, and how soon a full disk is noticed
NUMBERS_TRIED = 100  # of files that another process may have begun at the same moment
_NAME = re.compile(r"decisions-(\d{6,12})\.jsonl\.gz")


class SegmentFiles:
    """The segment that is being written, and those before it. For one thread; its methods raise OSError."""

    def __init__(self, directory: Path, segments_max: int, run: str) -> None:
        self.path = directory  # of the newest segment, once there is one
        self._directory = directory
        self._segments_max = segments_max
        self._run = run
        self._file: gzip.GzipFile | None = None
        self._records = self._records_flushed = 0
        self._flushed_s = 0.0

    @property
    def is_open(self) -> bool:
        """True while records have a file to go to."""
        return self._file is not None

    def begin(
        self,
        captured: Captured,
        settings: SchedulerSettings,
        engines: Sequence[EngineSettings],
        missing: dict[str, Any] | None,
    ) -> None:
        """A new segment is on the disk with its header and the state, and the oldest beyond the bound are gone.

        `missing` says how many records were lost between the segment before and this one, and why.
        """
        self.end(None)
        self._directory.mkdir(parents=True, exist_ok=True)
        number, file = self._created()
        header = {
            "recording": FORMAT,
            "sidecar": __version__,
            "fields": fingerprint(),
            "run": self._run,
            "segment": number,
            "settings": encode(settings),
            "engines": [encode(each) for each in engines],
            "nodes": len(captured.nodes),
            "missing": missing,
            "wall_s": round(time.time() - time.monotonic(), 3),  # what makes a clock time of the times in the records
        }
        try:
            for each in (header, *captured.lines()):
                file.write(line(each))
            file.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                self.path.unlink()  # a file without its state is no segment, and may not push out one that is
            raise
        self._file, self._flushed_s = file, time.monotonic()
        self._records = self._records_flushed = 0
        self._delete_old()

    def write(self, lines: Sequence[bytes]) -> None:
        """The records are in the segment."""
        if lines and self._file is not None:
            self._file.write(b"".join(lines))
            self._records += len(lines)

    def end(self, why: str | None) -> None:
        """The segment is complete; `why` it ended before its time, if it did."""
        if self._file is None:
            return
        self._file.write(line({"end": self._records, "why": why}))
        self._file.close()  # if it raises, `give_up` follows
        self._file = None

    def give_up(self) -> int:
        """The segment stays as far as it could be written; how many of its records may be missing. Raises nothing."""
        file, self._file = self._file, None
        if file is None:
            return 0
        try:
            file.close()
        except OSError:
            return self._records - self._records_flushed
        return 0

    def flush_if_due(self) -> None:
        """What was written a while ago is on the disk."""
        if self._file is not None and time.monotonic() - self._flushed_s >= FLUSH_S:
            self._flushed_s = time.monotonic()
            self._file.flush()
            self._records_flushed = self._records

    def _created(self) -> tuple[int, gzip.GzipFile]:
        """A file that was not there before, and its number."""
        number = 1 + max((segment_number(each) for each in segments(self._directory)), default=0)
        for each in range(number, number + NUMBERS_TRIED):
            self.path = self._directory / f"decisions-{each:06}.jsonl.gz"
            with contextlib.suppress(FileExistsError):
                return each, gzip.GzipFile(filename=self.path, mode="xb", compresslevel=COMPRESSION)
        raise FileExistsError(f"{NUMBERS_TRIED} names of segments are taken in {self._directory}")

    def _delete_old(self) -> None:
        for old in segments(self._directory)[: -self._segments_max]:
            try:
                old.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("the recorder cannot delete %s: %s", old, error.strerror)


def line(plain: Any) -> bytes:
    """One line of a segment. Raises ValueError for one that is longer than a reader takes."""
    found = json.dumps(plain, separators=(",", ":")).encode() + b"\n"
    if len(found) > LINE_BYTES_MAX:
        raise ValueError(f"a line of {len(found)} bytes is longer than {LINE_BYTES_MAX}")
    return found


def segments(directory: Path) -> list[Path]:
    """The segments in `directory`, oldest first; whatever else lies there is left alone."""
    found = [each for each in directory.glob("decisions-*.jsonl.gz") if _NAME.fullmatch(each.name) and each.is_file()]
    return sorted(found, key=segment_number)


def segment_number(path: Path) -> int:
    """Which one it is."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is no segment")
    return int(match[1])
