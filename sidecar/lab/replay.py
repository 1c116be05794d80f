"""Replay: the recorded events go through the scheduler again, and must bring the recorded actions, bit for bit.

With `--what-if`, the recorded arrivals are simulated under other settings instead (`sidecar/lab/whatif.py`).
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import json
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.profile import profile_named
from sidecar.core.errors import SettingsError, SidecarError
from sidecar.core.record import RecordError, decode
from sidecar.core.scheduler import Scheduler
from sidecar.lab import recording, whatif
from sidecar.lab.policies import parse_overrides
from sidecar.lab.recording import Recording

FORMAT = 1
ALLOWED = {("collections", "Counter"), ("collections", "deque"), ("itertools", "count")}  # and all of sidecar.core


class ReplayError(SidecarError):
    """The file cannot be replayed at all; the message says why."""


@dataclass(slots=True)
class Replay:
    """What came of a replay."""

    records: int = 0
    actions: int = 0
    mismatches: int = 0
    first_mismatch: str | None = None
    truncated: bool = False  # the last record is incomplete: the writer was killed

    def mismatch(self, why: str) -> None:
        """One more record that did not come out as it was written."""
        self.mismatches += 1
        self.first_mismatch = self.first_mismatch or f"record {self.records}: {why}"


def replay(path: Path) -> Replay:
    """Every record of one segment, replayed. Raises ReplayError if it is none."""
    result, lines = Replay(), _lines(path)
    scheduler = _scheduler(path, next(lines, None))
    for line in lines:
        if line is None:
            result.truncated = True
            break
        result.records += 1
        try:
            now_s, event, recorded = json.loads(line)
            actions = [decode(each) for each in recorded]
            result.actions += len(actions)
            found = scheduler.handle(decode(event), now_s)
        except (RecordError, ValueError, TypeError, AssertionError, KeyError) as error:
            result.mismatch(f"{type(error).__name__}: {error}")
            continue
        if found != actions:
            result.mismatch(f"{event} gave {found}, recorded was {actions}")
    return result


def _lines(path: Path) -> Iterator[str | None]:
    """The lines of a segment; None stands for a last one that was cut off."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield line if line.endswith("\n") else None
    except EOFError:
        yield None
    except (OSError, UnicodeDecodeError) as error:
        raise ReplayError(f"{path}: {error}") from None


def _scheduler(path: Path, line: str | None) -> Scheduler:
    """The scheduler as it stood when the segment began."""
    try:
        header: Mapping[str, Any] = json.loads(line or "")
        if header["format"] != FORMAT:
            raise ReplayError(f"{path} has format {header['format']}, this version reads {FORMAT}")
        found = _Restricted(io.BytesIO(base64.b64decode(header["state"]))).load()
    except (ValueError, KeyError, TypeError, AttributeError, pickle.UnpicklingError, EOFError) as error:
        raise ReplayError(f"{path} does not begin with a header of the recorder: {error}") from None
    if not isinstance(found, Scheduler):
        raise ReplayError(f"{path} holds no scheduler but a {type(found).__name__}")
    return found


class _Restricted(pickle.Unpickler):
    """Makes nothing but what a scheduler is made of, so that a foreign file cannot run anything."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("sidecar.core.") or (module, name) in ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a recording")


def recorded(paths: Sequence[Path]) -> Recording:
    """What one segment tells, or several of one run in their order. Raises ReplayError or RecordingError."""
    lines = _lines(paths[0])
    return recording.read(_scheduler(paths[0], next(lines, None)), _records(paths, lines))


def _records(paths: Sequence[Path], first: Iterator[str | None]) -> Iterator[recording.Record]:
    """The records of all segments; a last one that was cut off is left out. `first` is behind its header already."""
    for number, path in enumerate(paths):
        lines = _lines(path) if number else first
        if number:
            _scheduler(path, next(lines, None))  # what is no segment is refused
        for line in lines:
            if line is None:
                break
            try:
                now_s, event, actions = json.loads(line)
                yield now_s, decode(event), [decode(each) for each in actions]
            except (RecordError, ValueError, TypeError) as error:
                raise ReplayError(f"{path}: {error}") from None


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
        Console().print(whatif.table(report))
    return 0


def _check(options: argparse.Namespace) -> int:
    results = [replay(each) for each in options.files]
    result = Replay(
        records=sum(each.records for each in results),
        actions=sum(each.actions for each in results),
        mismatches=sum(each.mismatches for each in results),
        first_mismatch=next((each.first_mismatch for each in results if each.first_mismatch), None),
        truncated=any(each.truncated for each in results),
    )
    _write(options.json, asdict(result))
    if options.json != "-":
        cut = ", the last one cut off" if result.truncated else ""
        print(f"{result.records} records{cut}, {result.actions} actions, {result.mismatches} mismatches")
    if result.first_mismatch:
        print(f"the first: {result.first_mismatch}", file=sys.stderr)
    return 1 if result.mismatches else 0


def _write(where: str | None, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=2)
    if where == "-":
        print(text)
    elif where is not None:
        Path(where).write_text(text + "\n")
