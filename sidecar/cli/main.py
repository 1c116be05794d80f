"""The command line. Each command is a `register(subparsers)` that sets `run`, a function of (options, environment).

Exit codes, of every command: see docs/cli.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import io
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sidecar import __version__
from sidecar.app import serve
from sidecar.core.errors import SettingsError, SidecarError
from sidecar.lifecycle import ENDED_AT_ONCE
from sidecar.settings.file import ServeSettings, load_settings
from sidecar.telemetry.logs import configure

Environment = Mapping[str, str]
Register = Callable[[Any], None]

logger = logging.getLogger(__name__)
FAILED, MISTAKEN, DEFECT, INTERRUPTED, UNREAD = 1, 2, 70, 130, 141
EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": ("sidecar init", "sidecar init /srv/sidecar"),
    "build-engine": (
        "sidecar build-engine 70b-tp8 --model /srv/llama-70b --out /srv/built --dry-run",
        "sidecar build-engine 70b-awq-tp2 --model /srv/llama-70b --out /srv/built --calibration /srv/cnn_dailymail",
    ),
    "fill": (
        "sidecar fill 70b-tp8",
        "sidecar fill 8b-tp1 --out /serving --settings sidecar.yaml --triton 127.0.0.1:8011",
    ),
    "serve": (
        "sidecar serve --config sidecar.yaml",
        "SIDECAR__ENGINES__0__TARGET=triton-1:8001 sidecar serve --config sidecar.yaml --log-format json",
    ),
    "offsets": (
        "sidecar offsets show --config sidecar.yaml",
        "sidecar offsets reset --config sidecar.yaml --partition 3 --to 1200",
    ),
    "jobs": ("sidecar jobs --config sidecar.yaml", "sidecar jobs --bootstrap-servers kafka:9092 --running --json"),
    "keys": ("sidecar keys new --tenant labels --lanes offline", "sidecar keys check keys.yaml"),
    "reload": ("sidecar reload --config sidecar.yaml", "sidecar reload --config sidecar.yaml --pid 1"),
    "chat": (
        'sidecar chat "What is the capital of France?" --config sidecar.yaml',
        'sidecar chat "Name three rivers." --config sidecar.yaml --offline --max-tokens 60',
    ),
    "status": ("sidecar status --watch", "sidecar status --http 10.0.0.7:9100"),
    "doctor": ("sidecar doctor --config sidecar.yaml", "sidecar doctor --config sidecar.yaml --profile ours.json"),
    "profile": ("sidecar profile http://127.0.0.1:8102 --gpu 'A100 80 GB' -o ours.json",),
    "simulate": (
        "sidecar simulate --workload origin --slots 8 --seeds 5 --hours 0.5",
        "sidecar simulate --arrivals monday.csv --policies online-only,ours --json -",
    ),
    "plan": (
        "sidecar plan --model 70b:4 --against 8b:1 --users 500",
        "sidecar plan --cost 6,0.18 --batches 1,512 --usd-per-hour 3.00,0.90 --slo-ms 100 --plot cost.svg",
        "sidecar plan --model 32b=32.8,64,8,128:2 --weights int4 --length 8192 --fit 1:18.7,64:21.2 --json -",
    ),
    "replay": (
        "sidecar replay decisions/decisions-000001.jsonl.gz --check",
        "sidecar replay decisions/*.gz --what-if slots=16 window_ms=5 --profile 70b-tp4-a100",
    ),
    "explain": (
        "sidecar explain 4bf92f3577b34da6a3ce929d0e0e4736 decisions/*.gz",
        "sidecar explain c123 decisions/decisions-000001.jsonl.gz --no-replay",
    ),
}


class _Help(argparse.HelpFormatter):
    """Wraps text, and leaves the examples as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def main(arguments: Sequence[str], environment: Environment, register: Sequence[Register]) -> int:
    """The exit code of the command that `arguments` name. Raises nothing but argparse's SystemExit."""
    options = _parser(register).parse_args(arguments)
    configure(options.log_format or "text", verbose=options.verbose, libraries=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no × is no reason to fail
    try:
        code: int = options.run(options, environment)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("sidecar: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _nobody_reads()
        return UNREAD
    except Exception as error:
        return max(_failed(each, options) for each in _leaves(error))


def _parser(register: Sequence[Register]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidecar",
        description="Share Triton's in-flight batch between two lanes.",
        epilog="`sidecar COMMAND --help` shows examples. Exit codes: 0 done, 1 failed, 2 wrong arguments or settings,"
        " 70 a defect of the sidecar, 130 interrupted, 141 nobody reads the output.",
    )
    parser.add_argument("--version", action="version", version=f"sidecar {__version__}")
    _add_common(parser, verbose=False, log_format=None)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for each in register:
        each(subparsers)
    for name, command in subparsers.choices.items():
        if command.formatter_class is argparse.HelpFormatter:
            command.formatter_class = _Help
        _add_common(command, verbose=argparse.SUPPRESS, log_format=argparse.SUPPRESS)  # behind the command as well
        if examples := EXAMPLES.get(name):
            command.epilog = "\n  ".join(("examples:", *examples))
    return parser


def _add_common(parser: argparse.ArgumentParser, *, verbose: Any, log_format: Any) -> None:
    parser.add_argument("--verbose", action="store_true", default=verbose, help="say more on stderr")
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default=log_format,
        help="of stderr; else the setting log_format; the default is text on a terminal, and json elsewhere for serve",
    )


def _failed(error: Exception, options: argparse.Namespace) -> int:
    """The exit code for `error`, which has been told on stderr: in a line, or several if there are several mistakes."""
    match error:
        case SettingsError():
            for line in str(error).splitlines():
                print(f"sidecar: {line}", file=sys.stderr)
            return MISTAKEN
        case SidecarError():
            print(f"sidecar: {error}", file=sys.stderr)
            return FAILED
        case OSError(filename=str(filename), strerror=str(reason)):
            print(f"sidecar: {filename}: {reason}", file=sys.stderr)
            return FAILED
        case MemoryError():
            print("sidecar: there is not enough memory", file=sys.stderr)
            return FAILED
        case _:
            # What ends a server must be found in its log; a command is told in a line, and says more if asked.
            traced = error if options.verbose or options.command == "serve" else None
            logger.critical("a defect of the sidecar: %s: %s", type(error).__name__, error, exc_info=traced)
            return DEFECT


def _leaves(error: Exception) -> Iterator[Exception]:
    """The errors of a group, however deep, or the one error."""
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _nobody_reads() -> None:
    """Python flushes stdout once more at the end, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    configure(options.log_format or settings.log_format, verbose=options.verbose)
    config_hash = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    drained = asyncio.run(_serve_once(settings, config_hash, lambda: load_settings(options.config, environment)))
    return 0 if drained else ENDED_AT_ONCE


async def _serve_once(settings: ServeSettings, config_hash: str, read_again: Callable[[], ServeSettings]) -> bool:
    """As `serve`. All is done by then: a signal that comes while the process ends does not make it a failure."""
    instance = f"{uuid.uuid4().hex[:6]}-"
    drained = await serve(settings, instance=instance, config_hash=config_hash, read_again=read_again)
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(each)
        signal.signal(each, signal.SIG_IGN)
    return drained
