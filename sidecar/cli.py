"""The command line. Each command is a `register(subparsers)` that sets `run`, a function of (options, environment)."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import signal
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sidecar import __version__
from sidecar.app import serve
from sidecar.core.errors import SettingsError, SidecarError
from sidecar.edge.config import ServeSettings, load_settings

Environment = Mapping[str, str]
Register = Callable[[Any], None]


def main(arguments: Sequence[str], environment: Environment, register: Sequence[Register]) -> int:
    """The exit code: 0, 1 for a failure, 2 for wrong settings or arguments."""
    parser = argparse.ArgumentParser(prog="sidecar", description="Share Triton's in-flight batch between two lanes.")
    parser.add_argument("--version", action="version", version=f"sidecar {__version__}")
    parser.add_argument("--verbose", action="store_true", help="say more on stderr")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for each in register:
        each(subparsers)
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        code: int = options.run(options, environment)
    except SettingsError as error:
        for line in str(error).splitlines():
            print(f"sidecar: {line}", file=sys.stderr)
        return 2
    except SidecarError as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return 1
    return code


def register_serve(subparsers: Any) -> None:
    """Add `serve`."""
    parser = subparsers.add_parser(
        "serve",
        help="run the sidecar in front of one or more engines",
        description="Serve callers on gRPC and items from Kafka until SIGTERM, then drain. Exit code 2: bad settings.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the settings, as YAML")
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace, environment: Environment) -> int:
    settings = load_settings(options.config, environment)
    config_hash = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    asyncio.run(_serve_once(settings, config_hash))
    return 0


async def _serve_once(settings: ServeSettings, config_hash: str) -> None:
    """As `serve`. All is done by then: a signal that comes while the process ends does not make it a failure."""
    await serve(settings, instance=f"{uuid.uuid4().hex[:6]}-", config_hash=config_hash)
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(each)
        signal.signal(each, signal.SIG_IGN)
