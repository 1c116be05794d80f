"""Replay: the recorded events go through the scheduler again, and must bring the recorded actions, bit for bit."""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import json
import pickle
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidecar.core.errors import SidecarError
from sidecar.core.record import RecordError, decode
from sidecar.core.scheduler import Scheduler

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


def register_replay(subparsers: Any) -> None:
    """Add `replay` to the command line."""
    parser = subparsers.add_parser(
        "replay",
        help="run recorded events through the scheduler again and compare its actions",
        description="Replay a segment of the decision recorder. Exit code 1 if one action differs.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a segment: decisions-NNNNNN.jsonl.gz")
    parser.add_argument("--check", action="store_true", help="compare with the recorded actions (the default)")
    parser.add_argument("--json", metavar="FILE", help="write the counts there; - is stdout")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    result = replay(options.file)
    document = json.dumps(asdict(result), indent=2)
    if options.json not in (None, "-"):
        Path(options.json).write_text(document + "\n")
    if options.json == "-":
        print(document)
    else:
        cut = ", the last one cut off" if result.truncated else ""
        print(f"{result.records} records{cut}, {result.actions} actions, {result.mismatches} mismatches")
    if result.first_mismatch:
        print(f"the first: {result.first_mismatch}", file=sys.stderr)
    return 1 if result.mismatches else 0
