"""How long to wait before something is tried again: short where time heals it, longer where a person has to."""

from __future__ import annotations

import asyncio
import random

from sidecar.offline.lane_state import OPERATOR, Cause

BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # between openings of one partition, and between consumers


class Pauses:
    """Bounded and jittered, so that two owners who fence each other do not do it for ever."""

    def __init__(self, look_again_s: float, draw: random.Random) -> None:
        self._look_again_s = look_again_s
        self._draw = draw

    async def until(self, event: asyncio.Event, failures: int, cause: Cause) -> None:
        """Returns when the event is set, or when this many failures in a row have been waited for."""
        if not failures:
            return
        pause_s = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]
        if cause in OPERATOR:
            pause_s = min(2.0 ** min(failures - 1, 30), self._look_again_s)
        await wait(event, pause_s * self._draw.uniform(0.5, 1.0))


async def wait(event: asyncio.Event, timeout_s: float) -> None:
    """Returns when the event is set, or after the timeout."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
