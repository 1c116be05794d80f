"""Reading a segment of the decision recorder: its header, the scheduler that it begins with, its records.

A file may come from anywhere. Nothing in it is executed or imported, no line is read beyond a bound, and whatever is
wrong is a RecordingError that names the file and the line.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from sidecar import __version__
from sidecar.core.checkpoint import restore
from sidecar.core.errors import SidecarError
from sidecar.core.events import Action, Event
from sidecar.core.record import (
    FORMAT,
    LINE_BYTES_MAX,
    RecordError,
    decode_action,
    decode_as,
    decode_event,
    fingerprint,
    shown,
)
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings

STATE_BYTES_MAX = 256 << 20  # uncompressed; the state of 2,000 requests has 0.7 MB
NODES_MAX = 2_000_000
Record = tuple[float, Event, Sequence[Action]]


class RecordingError(SidecarError):
    """The recording cannot be read, or does not hold what is asked of it; the message says where and why."""


class DamagedRecordError(RecordingError):
    """One line is no record; those after it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a segment says about itself."""

    sidecar: str  # the version that wrote it
    run: str  # equal for the segments of one process
    segment: int
    settings: SchedulerSettings
    engines: tuple[EngineSettings, ...]
    nodes: int
    missing: int  # records between the segment before and this one
    missing_why: str
    wall_s: float | None  # added to a time of the records it is one since 1970; None = not recorded


@dataclass(slots=True)
class Segment:
    """An open segment. Read it once, from the front: `scheduler`, then `records`."""

    path: Path
    header: Header
    _lines: Iterator[tuple[int, bytes]]
    complete: bool = field(default=False, init=False)  # the last line was read, and it was whole
    ended_why: str = field(default="", init=False)  # why it ended before its time; "" = in good order

    def scheduler(self) -> Scheduler:
        """The scheduler as it stood when the segment began. Raises RecordingError."""
        number = size = nodes = 0

        def state() -> Iterator[Any]:
            nonlocal number, size, nodes
            while nodes < self.header.nodes:
                number, raw = next(self._lines, (number, b""))
                size += len(raw)
                if not raw or size > STATE_BYTES_MAX:
                    raise RecordError(f"the state is larger than {size} bytes" if raw else "the file ends in the state")
                plain = _parsed(self.path, number, raw)
                nodes += isinstance(plain, list)
                yield plain

        try:
            found = restore(state(), self.header.nodes)
        except RecordError as error:
            raise RecordingError(f"{self.path}:{number}: {error}") from None
        if found.settings != (self.header.settings, self.header.engines):
            raise RecordingError(f"{self.path}: the state has other settings than the header")
        return found

    def records(self) -> Iterator[Record | DamagedRecordError]:
        """The records; a line that is none is given as its error. Raises RecordingError where the file is damaged."""
        for count, (number, raw) in enumerate(self._lines):
            plain = _parsed(self.path, number, raw)
            if isinstance(plain, dict) and plain.keys() == {"end", "why"}:
                self._end(number, plain, count)
                return
            yield self._record(number, plain)

    def raw(self) -> Iterator[bytes]:
        """The lines of the records as they were written, with that of the end if there is one. Not checked."""
        for _, raw in self._lines:
            yield raw

    def _record(self, number: int, plain: Any) -> Record | DamagedRecordError:
        try:
            match plain:
                case [float() | int() as now_s, event, [*actions], *trace] if (
                    isfinite(now_s) and now_s is not True and len(trace) <= 1
                ):
                    return float(now_s), decode_event(event), tuple([decode_action(each) for each in actions])
                case _:
                    raise RecordError(f"no record: {shown(plain)}")
        except (RecordError, OverflowError) as error:
            return DamagedRecordError(f"{self.path}:{number}: {error}")

    def _end(self, number: int, plain: Any, count: int) -> None:
        if plain["end"] != count or not isinstance(plain["why"], str | None):
            raise RecordingError(f"{self.path}:{number}: {count} records, and the last line is {shown(plain)}")
        if next(self._lines, None) is not None:
            raise RecordingError(f"{self.path}:{number + 1}: the file goes on behind its last line")
        self.complete, self.ended_why = True, plain["why"] or ""


def opened(path: Path) -> Segment:
    """The segment that `path` holds. Raises RecordingError if it holds none."""
    lines = _lines(path)
    number, raw = next(lines, (1, b"null"))
    return Segment(path, _header(path, _parsed(path, number, raw)), lines)


def _header(path: Path, plain: Any) -> Header:
    if not isinstance(plain, dict):
        raise RecordingError(f"{path} is no recording: it does not begin with a header of the recorder")
    written = plain.get("recording", plain.get("format"))
    if written != FORMAT:
        advice = _OLDER.get(written, "") if isinstance(written, int) else ""
        raise RecordingError(f"{path} is a recording of format {shown(written)}, this version reads {FORMAT}{advice}")
    if plain.get("fields") != fingerprint():
        raise RecordingError(
            f"{path} was recorded by another version of the scheduler (sidecar {shown(plain.get('sidecar'))}), whose"
            f" events have other fields; replay it with that version, this one is {__version__}"
        )
    try:
        match plain:
            case {
                "sidecar": str(sidecar),
                "run": str(run),
                "segment": int(segment),
                "settings": settings,
                "engines": [*engines],
                "nodes": int(nodes),
                "missing": None | {"records": int(), "why": str()} as missing,
            } if 0 < nodes <= NODES_MAX:
                return Header(
                    sidecar=sidecar,
                    run=run,
                    segment=segment,
                    settings=decode_as(SchedulerSettings, settings),
                    engines=tuple([decode_as(EngineSettings, each) for each in engines]),
                    nodes=nodes,
                    missing=missing["records"] if missing else 0,
                    missing_why=missing["why"] if missing else "",
                    wall_s=plain["wall_s"] if isinstance(plain.get("wall_s"), float) else None,
                )
            case _:
                raise RecordError(f"no header of the recorder: {shown(plain)}")
    except RecordError as error:
        raise RecordingError(f"{path}:1: {error}") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each whole line with its number. A file that was cut off ends early; a damaged one raises RecordingError."""
    number = 0
    try:
        with gzip.open(path, "rb") as file:
            while raw := file.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(raw) > LINE_BYTES_MAX:
                    raise RecordingError(f"{path}:{number}: longer than {LINE_BYTES_MAX} bytes")
                if not raw.endswith(b"\n"):
                    return  # the writer was killed within it
                yield number, raw
    except EOFError:
        return  # the writer was killed
    except (OSError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        where = f"{path}:{number + 1}" if number else str(path)
        raise RecordingError(f"{where}: {reason}") from None


def _parsed(path: Path, number: int, raw: bytes) -> Any:
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise RecordingError(f"{path}:{number}: no JSON: {error}") from None


_OLDER = {  # what is to be said of a recording of this format
    1: "; format 1 held pickled objects, which are not read any more",
    2: "; format 2 held other names of fields: replay the file with the sidecar that wrote it, or record anew",
    3: "; format 3 held the state of another rule: replay the file with the sidecar that wrote it, or record anew",
}
