"""`sidecar keys`: a new key, and what a file of keys grants."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from sidecar.core.errors import SettingsError
from sidecar.core.request import Lane
from sidecar.keys import hash_of, load_keys, new_key
from sidecar.settings.keys import KeySettings


def register_keys(subparsers: Any) -> None:
    """Add `keys`."""
    parser = subparsers.add_parser("keys", help="make a key for a caller, or check a file of keys")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="new|check")
    new = kinds.add_parser(
        "new",
        help="print a new key, and the line for the file of keys",
        description="Print a new key on stderr, once and nowhere else, and its line for the file of keys on stdout:"
        " `sidecar keys new --tenant labels >> keys.yaml`. The file holds a hash of the key.",
    )
    new.add_argument("--tenant", required=True, help="whose requests are sent with it")
    new.add_argument("--lanes", default="online,offline", help="what may be asked for (%(default)s)")
    new.add_argument("--certificate", default="", metavar="NAME", help="no key: a client's certificate with this name")
    new.add_argument("--operator", action="store_true", help="may change Triton's models, and see the status of all")
    new.add_argument("--expires", type=_moment, metavar="TIME", help="e.g. 2027-01-31T00:00:00Z")
    for name in ("requests-per-minute", "tokens-per-minute", "weight"):
        new.add_argument(f"--{name}", type=float, metavar="N")
    for name in ("waiting-max", "slots-max"):
        new.add_argument(f"--{name}", type=int, metavar="N")
    new.set_defaults(run=_new)
    check = kinds.add_parser("check", help="say what the keys of a file grant; exit code 2 for a file with a mistake")
    check.add_argument("file", type=Path, metavar="FILE")
    check.set_defaults(run=_check)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _new(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    del environment
    secret = "" if options.certificate else new_key()
    try:
        lanes = tuple(Lane(each) for each in options.lanes.split(","))
    except ValueError:
        raise SettingsError(f"--lanes must be online, offline or both with a comma, not {options.lanes!r}") from None
    names = {each.name for each in fields(KeySettings)} - {"key", "lanes"}
    stated = {name: value for name, value in vars(options).items() if name in names and value not in (None, "", False)}
    made = KeySettings(key=hash_of(secret) if secret else "", lanes=lanes, **stated)
    if secret:
        print(f"the key, shown only now: {secret}", file=sys.stderr)
    print(line_of(made))
    return 0


def line_of(key: KeySettings) -> str:
    """The line of a file of keys that grants the same."""
    found: dict[str, Any] = {}
    for each in fields(KeySettings):
        value = getattr(key, each.name)
        if value != each.default:
            found[each.name] = value
    found["lanes"] = [str(lane) for lane in key.lanes]
    if key.expires is not None:
        found["expires"] = key.expires.isoformat()
    return f"- {yaml.safe_dump(found, default_flow_style=True, sort_keys=False, width=10_000).strip()}"


def _check(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    del environment
    for each in load_keys(options.file):
        kind = "key" if each.key else "certificate"
        limits = [
            f"{getattr(each, name):g} {name.replace('_', ' ')}"
            for name in ("requests_per_minute", "tokens_per_minute", "weight", "waiting_max", "slots_max")
            if getattr(each, name)
        ]
        rest = [*limits, *(["operator"] if each.operator else []), *([f"until {each.expires}"] if each.expires else [])]
        shown = f"{each.id[:19]}…" if each.id.startswith("sha256:") else each.id
        print(f"ok      {kind} {shown}: {each.tenant}; {', '.join([*each.lanes, *rest])}")
    return 0
