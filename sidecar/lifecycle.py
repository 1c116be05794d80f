"""The life of the process: signals, how many files it may have open, and how its parts come to their end."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import threading
import traceback
from collections.abc import Callable

from sidecar.core.errors import SidecarError
from sidecar.driver.driver import Driver
from sidecar.frontend.grpc_server import MethodServer
from sidecar.offline.lane import OfflineLane
from sidecar.telemetry.faults import NoFileLeft

logger = logging.getLogger(__name__)
ENDED_AT_ONCE = 143  # the exit code: what a shell says of a process that SIGTERM ended
AT_ONCE_S = 2.0  # after a second signal the process lives no longer than this
_NO_FILE_LEFT = NoFileLeft()
FILES_WANTED = 65_536  # a connection is a file


class Signals:
    """SIGTERM and SIGINT: the first closes, the second ends the process at once. SIGHUP reads the settings again."""

    def __init__(self, reload: Callable[[], None] | None = None) -> None:
        self.closing = asyncio.Event()
        self._at_once = asyncio.Event()
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._ends)
        if reload is not None:
            loop.add_signal_handler(signal.SIGHUP, reload)

    @property
    def drained(self) -> bool:
        """False once a second signal came."""
        return not self._at_once.is_set()

    async def done_before_the_second(self, draining: asyncio.Task[None]) -> bool:
        """Wait for the end of `draining`, or for a second signal. Return False for that; `draining` then goes on."""
        second = asyncio.ensure_future(self._at_once.wait())
        try:
            await asyncio.wait({draining, second}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            second.cancel()
        return self.drained

    def _ends(self) -> None:
        if not self.closing.is_set():
            self.closing.set()
        elif self.drained:
            self._at_once.set()
            # What is being cancelled may wait for a broker or a disk. Nothing of it is needed: as after a kill, what
            # was not committed is run again by the next owner.
            last = threading.Timer(AT_ONCE_S, os._exit, (ENDED_AT_ONCE,))
            last.daemon = True
            last.start()


def prepare_for_many_connections() -> None:
    """The process may have many files open, and says only once a minute that it has none left.

    The soft limit is often 1,024, for the sake of programs that use `select`; each process may raise it for itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES_WANTED:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_WANTED if hard < 0 else min(hard, FILES_WANTED), hard))
    logging.getLogger("asyncio").addFilter(_NO_FILE_LEFT)


async def until_it_ends(server: MethodServer, closing: asyncio.Event) -> None:
    """Raise SidecarError if the callers' server ends by itself: a sidecar that nobody can call must not live on."""
    await asyncio.shield(server.wait_for_termination())  # cancelled, it would cancel the server's own future
    if not closing.is_set():
        raise SidecarError("the gRPC server for callers has ended")


async def until_idle(driver: Driver, obeying: asyncio.Task[None], timeout_s: float) -> None:
    """Nothing runs any more: it ended by itself, or was broken off after the timeout."""
    done, _ = await asyncio.wait({obeying}, timeout=timeout_s)
    if not done:
        logger.warning("%d dispatches still run after %g s; breaking off", driver.in_flight, timeout_s)
        obeying.cancel()
        await asyncio.wait({obeying})


async def read_items(lane: OfflineLane) -> None:
    """Run the lane. Only a defect stops it, and then it says so; online goes on."""
    try:
        await lane.run()
    except Exception as error:
        places = "; ".join(f"{each.filename}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__))
        logger.error(
            "the offline lane is %s (%s)", lane.state, places
        )  # without the text: it may hold a part of an item
