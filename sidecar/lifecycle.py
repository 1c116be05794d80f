"""What the process has to do with its operating system: signals, and how many files it may have open."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Callable

from sidecar.telemetry.faults import NoFileLeft

_NO_FILE_LEFT = NoFileLeft()
FILES_WANTED = 65_536  # a connection is a file


def on_signals(close: Callable[[], None], break_off: Callable[[], object]) -> None:
    """The first SIGTERM or SIGINT closes, the second breaks off."""
    signals_seen = 0

    def on_signal() -> None:
        nonlocal signals_seen
        signals_seen += 1
        close() if signals_seen == 1 else break_off()

    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, on_signal)


def prepare_for_many_connections() -> None:
    """The process may have many files open, and says only once a minute that it has none left.

    The soft limit is often 1,024, for the sake of programs that use `select`; each process may raise it for itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES_WANTED:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_WANTED if hard < 0 else min(hard, FILES_WANTED), hard))
    logging.getLogger("asyncio").addFilter(_NO_FILE_LEFT)
