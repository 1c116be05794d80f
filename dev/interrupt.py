"""Ctrl-C and SIGTERM end what was started, in order, also where a shell in the background has SIGINT ignored."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
INTERRUPTED = 130  # exit status, as a shell's after Ctrl-C


def on_signals(handler: Callable[[], object]) -> None:
    """SIGINT and SIGTERM call `handler` from here on, in the running loop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, handler)


def run_until_told(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns. A signal cancels it, so that it ends all it has started; then SystemExit(130)."""

    async def cancellable() -> T:
        task = asyncio.ensure_future(work)
        on_signals(task.cancel)
        return await task

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        sys.exit(INTERRUPTED)
