"""Replay: the recorded events go through the scheduler again, and must bring the recorded actions, bit for bit.

With `--what-if`, the recorded arrivals are simulated under other settings instead (`sidecar/sim/whatif.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from sidecar import __version__
from sidecar.core.errors import SettingsError
from sidecar.inflight.profile import profile_named
from sidecar.sim import recording, whatif
from sidecar.sim.policies import parse_overrides
from sidecar.sim.recording import Recording
from sidecar.sim.segment import DamagedRecordError, Record, RecordingError, Segment, opened
from sidecar.sim.tables import printed


@dataclass(slots=True)
class Replay:
    """What came of a replay."""

    records: int = 0
    actions: int = 0
    mismatches: int = 0
    first_mismatch: str | None = None
    truncated: bool = False  # a segment has no last line: the writer was killed, or writes still
    missing: int = 0  # records that are in no segment, as the segments themselves say; none of them is a mismatch
    notes: list[str] = field(default_factory=list)  # what a reader of the figures has to know

    def mismatch(self, why: str) -> None:
        """One more record that did not come out as it was written."""
        self.mismatches += 1
        self.first_mismatch = self.first_mismatch or why


def replay(paths: Sequence[Path]) -> Replay:
    """Every record of the segments, replayed. Raises RecordingError where one of them cannot be read."""
    result = Replay()
    for path in paths:
        _replay(opened(path), result)
    return result


def _replay(segment: Segment, result: Replay) -> None:
    scheduler, header = segment.scheduler(), segment.header
    if header.sidecar != __version__:
        result.notes.append(f"{segment.path}: recorded by sidecar {header.sidecar}, replayed by {__version__}")
    if header.missing:
        result.missing += header.missing
        result.notes.append(
            f"{segment.path}: up to {header.missing} records before it are missing: {header.missing_why}"
        )
    for record in segment.records():
        result.records += 1
        if isinstance(record, DamagedRecordError):
            result.mismatch(str(record))
            continue
        now_s, event, actions = record
        result.actions += len(actions)
        try:
            found = scheduler.handle(event, now_s)
        except Exception as error:  # the file may say anything; what the scheduler makes of it is not ours
            result.mismatch(f"{segment.path}: record {result.records}: {type(error).__name__}: {error}")
            continue
        if found != list(actions):
            result.mismatch(
                f"{segment.path}: record {result.records}: {event} gave {found}, recorded was {list(actions)}"
            )
    if not segment.complete:
        result.truncated = True
        result.notes.append(f"{segment.path}: the end is cut off; the writer was killed, or still writes")
    elif segment.ended_why:
        result.notes.append(f"{segment.path}: ended early: {segment.ended_why}")


def recorded(paths: Sequence[Path]) -> Recording:
    """Return what one segment tells, or several of one run in their order. Raises RecordingError."""
    segments = [opened(each) for each in paths]
    for before, segment in pairwise(segments):
        if segment.header.run != before.header.run:
            raise RecordingError(f"{segment.path} is of another run than {before.path}")
        if segment.header.segment != before.header.segment + 1:
            raise RecordingError(
                f"{segment.path} (segment {segment.header.segment}) does not follow {before.path}"
                f" (segment {before.header.segment}); give the segments in their order"
            )
        if segment.header.missing:
            raise RecordingError(
                f"up to {segment.header.missing} records are missing between {before.path} and {segment.path}"
                f" ({segment.header.missing_why}); give the segments on one side of the gap"
            )
    return recording.read(segments[0].scheduler(), _records(segments))


def _records(segments: Sequence[Segment]) -> Iterator[Record]:
    """The records of all segments; a last one that was cut off is left out."""
    for number, segment in enumerate(segments):
        if number:
            segment.scheduler()  # its place in the file is passed, and a damaged one is refused
        for record in segment.records():
            if isinstance(record, DamagedRecordError):
                raise record
            yield record


def register_replay(subparsers: Any) -> None:
    """Add `replay` to the command line."""
    parser = subparsers.add_parser(
        "replay",
        help="run recorded events through the scheduler again: the same actions, or other settings",
        description="Replay segments of the decision recorder. Exit code 1 if one action differs, 2 for a bad setting.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="decisions-NNNNNN.jsonl.gz, in order")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="compare with the recorded actions (the default)")
    what.add_argument(
        "--what-if", nargs="+", metavar="KEY=VALUE", help="simulate the same arrivals with these settings"
    )
    parser.add_argument(
        "--profile", metavar="NAME", help="iteration times; default: fitted to the recording (--what-if)"
    )
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the figures there; - is stdout")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    return _check(options) if options.what_if is None else _what_if(options)


def _what_if(options: argparse.Namespace) -> int:
    try:
        profile = profile_named(options.profile) if options.profile else None
    except ValueError as error:
        raise SettingsError(str(error)) from None
    parse_overrides(options.what_if)  # a wrong one is said before a long file is read
    report = whatif.compare(recorded(options.files), options.what_if, profile)
    _write(options.json, report)
    if options.json != "-":
        printed(whatif.table(report))
    return 0


def _check(options: argparse.Namespace) -> int:
    result = replay(options.files)
    document = {name: getattr(result, name) for name in Replay.__slots__}
    _write(options.json, document)
    if options.json != "-":
        missing = f", {result.missing} missing" if result.missing else ""
        print(f"{result.records} records{missing}, {result.actions} actions, {result.mismatches} mismatches")
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if result.first_mismatch:
        print(f"the first: {result.first_mismatch}", file=sys.stderr)
    return 1 if result.mismatches else 0


def _write(where: str | None, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=2)
    if where == "-":
        print(text)
    elif where is not None:
        Path(where).write_text(text + "\n")
