"""What waits to be written to one caller, and the writing itself, one message at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

OUTBOX_MAX = 65_536  # responses that wait for one caller: 32 requests of 2,048 tokens, some 10 MB
OUTBOX_HIGH = 4_096  # beyond it no further request of this caller is read


class Outbox:
    """Writes serialised messages in order, without a task of its own. A slow reader makes it grow, up to `full`.

    The coroutine of grpc.aio's `write` is stepped by hand, from `put` and then from the callbacks of what it waits for:
    a writing task would have to be woken for each token, which is a further turn of the event loop with its epoll and
    its hand-over of the interpreter lock to gRPC's polling thread.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._waiting: deque[bytes] = deque()
        self._writing = False
        self._broken = False
        self._roomy = asyncio.Event()
        self._roomy.set()
        self._closed = False
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, message: bytes) -> None:
        """`message` is being written, or the next to be. Dropped if the caller is gone."""
        if self._broken or self._closed:
            return
        if not self._writing:
            self._write(message)
            return
        self._waiting.append(message)
        if len(self._waiting) > OUTBOX_HIGH:
            self._roomy.clear()

    @property
    def full(self) -> bool:
        """True if this caller reads so slowly that its requests must not go on."""
        return len(self._waiting) >= OUTBOX_MAX

    async def room(self) -> None:
        """Few enough messages wait."""
        await self._roomy.wait()

    def close(self) -> None:
        """Nothing more may be put."""
        self._closed = True
        self._finish_if_done()

    async def finished(self) -> None:
        """It is closed, and everything has been written or can no longer be."""
        await self._finished  # cancelled: a write in progress ends with its RPC

    def _write(self, message: bytes) -> None:
        self._writing = True
        self._step(self._context.write(message))

    def _step(self, write: Coroutine[Any, Any, None]) -> None:
        """Run `write` up to what it waits for next, or to its end."""
        try:
            blocked_on = write.send(None)
        except StopIteration:
            self._written()
        except (Exception, asyncio.CancelledError):  # the RPC is over; its handler hears why
            self._broken = True
            self._waiting.clear()
            self._written()
        else:
            blocked_on.add_done_callback(lambda _: self._step(write))

    def _written(self) -> None:
        self._writing = False
        if len(self._waiting) <= OUTBOX_HIGH:
            self._roomy.set()
        if self._waiting:
            self._write(self._waiting.popleft())
        elif self._closed:
            self._finish_if_done()

    def _finish_if_done(self) -> None:
        if not self._writing and not self._waiting and not self._finished.done():
            self._finished.set_result(None)
