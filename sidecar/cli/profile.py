"""`sidecar profile`: the iteration times that a running sidecar has learnt, as a file for the simulator.

A team's own GPU, under its own load, then stands in `simulate --profile FILE`, in an engine paced by the file, and in
`doctor --profile FILE`. What the file says holds for what was seen: a sidecar that never saw 64 rows knows nothing of
the 65th.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sidecar.cli.operate import StatusError, status_document
from sidecar.core.errors import SettingsError, SidecarError
from sidecar.inflight.measured import KV_TOKENS_MAX, measured_profile
from sidecar.settings.file import is_address


class NotLearntError(SidecarError):
    """The sidecar has no model of its engine's iterations that may be used."""


def register_profile(subparsers: Any) -> None:
    """Add `profile`."""
    parser = subparsers.add_parser(
        "profile",
        help="write the iteration times that a running sidecar has learnt, for simulate",
        description="Exit code 1: no sidecar answers, or it has not learnt enough to be trusted.",
    )
    parser.add_argument("sidecar", metavar="http://HOST:PORT", help="its http setting")
    parser.add_argument("--engine", metavar="NAME", help="which engine, if it has several")
    parser.add_argument("--gpu", default="not told", metavar="TEXT", help="what it runs on, for whoever reads the file")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="a name that ends in .json (default: stdout)")
    parser.set_defaults(run=_profile)


def _profile(options: argparse.Namespace, _: Mapping[str, str]) -> int:
    address = options.sidecar.removeprefix("http://").rstrip("/")
    if not is_address(address):
        raise SettingsError(f"give a sidecar as http://HOST:PORT, not {options.sidecar!r}")
    if options.out is not None and options.out.suffix != ".json":
        raise SettingsError(f"--out must end in .json, or simulate takes it for a profile's name: {options.out}")
    document = asyncio.run(status_document(address))
    try:
        engines = document["engines"]
        name = options.engine or next(iter(engines))
        if name not in engines or (options.engine is None and len(engines) > 1):
            raise SettingsError(f"--engine must be one of {', '.join(engines)}")
        found = learnt_profile(name, engines[name], f"http://{address}", options.gpu)
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration):
        raise StatusError(f"http://{address} gives no status of a sidecar of this version") from None
    text = json.dumps(found, indent=1) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        print(f"{options.out}: try it with sidecar simulate --profile {options.out}", file=sys.stderr)
    return 0


def learnt_profile(name: str, engine: Mapping[str, Any], source: str, gpu: str) -> dict[str, Any]:
    """Return the profile file of one engine of a status document. Raises NotLearntError while it is not trusted."""
    model = engine["attribution"]["iteration"]
    if not model["trusted"]:
        told = "it has seen too little, or too unsteady an engine"
        raise NotLearntError(f"engine {name}: its iteration times are not known well enough yet: {told}")
    context = {"row_ms": 0.0, "prompt_token_ms": 0.0, "prompt_pair_ms": 0.0}  # the sidecar's model has none of these
    found = {
        "name": f"{name}-learnt",
        "source": f"sidecar profile {source}: learnt from gaps between tokens, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "gpu": gpu,
        "kv_tokens_max": engine["kv_tokens_max"] or KV_TOKENS_MAX,
        "points": model["points"],
        "attention": {**context, "context_token_ms": model["context_1000_ms"] / 1e3},
        "error": model["error"],
        "tokens_seen": model["tokens_seen"],
    }
    measured_profile(json.dumps(found))  # what could not be read back is not written
    return found
