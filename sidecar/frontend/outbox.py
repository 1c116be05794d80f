"""What waits to be written to one caller, and the writing itself, one message at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

OUTBOX_MAX = 65_536  # responses that wait for one caller: 32 requests of 2,048 tokens, some 10 MB
OUTBOX_HIGH = 4_096  # beyond it no further request of this caller is read
OUTBOX_BYTES_MAX = 64 << 20  # the same in bytes: 130 tokens with their logits over 128,000 words
OUTBOX_BYTES_HIGH = 4 << 20
ALL_BYTES_MAX = 512 << 20  # of all callers; beyond it whoever lets more than OUTBOX_BYTES_HIGH wait is cut off


class Unread:
    """The bytes that wait to be read by all callers together."""

    def __init__(self) -> None:
        self.bytes = 0


class Outbox:
    """Writes serialised messages in order, without a task of its own. A slow reader makes it grow, up to `overflow`.

    The coroutine of grpc.aio's `write` is stepped by hand, from `put` and then from the callbacks of what it waits for:
    a writing task would have to be woken for each token, which is a further turn of the event loop with its epoll and
    its hand-over of the interpreter lock to gRPC's polling thread.
    """

    def __init__(self, context: Any, unread: Unread | None = None) -> None:
        self._context = context
        self._unread = unread or Unread()
        self._waiting: deque[bytes] = deque()
        self._bytes = 0  # of those that wait
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
        self._count(len(message))
        if self._high:
            self._roomy.clear()

    def overflow(self) -> str:
        """Return why the requests of this caller must not go on, because it reads too slowly; "" if they may."""
        bytes_max = OUTBOX_BYTES_MAX if self._unread.bytes < ALL_BYTES_MAX else OUTBOX_BYTES_HIGH
        if len(self._waiting) < OUTBOX_MAX and self._bytes < bytes_max:
            return ""
        return f"{len(self._waiting)} responses of {self._bytes} bytes wait to be read, and no more may"

    async def room(self) -> None:
        """Few enough messages wait."""
        await self._roomy.wait()

    def close(self) -> None:
        """Nothing more may be put."""
        self._closed = True
        self._finish_if_done()

    def drop(self) -> None:
        """What waits is never written: nobody reads it."""
        self._count(-self._bytes)
        self._waiting.clear()
        self._roomy.set()
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
            self.drop()
            self._written()
        else:
            blocked_on.add_done_callback(lambda _: self._step(write))

    def _written(self) -> None:
        self._writing = False
        message = self._waiting.popleft() if self._waiting else None
        self._count(-len(message or b""))
        if not self._high:
            self._roomy.set()
        if message is not None:
            self._write(message)
        else:
            self._finish_if_done()

    @property
    def _high(self) -> bool:
        return len(self._waiting) > OUTBOX_HIGH or self._bytes > OUTBOX_BYTES_HIGH

    def _count(self, size: int) -> None:
        self._bytes += size
        self._unread.bytes += size

    def _finish_if_done(self) -> None:
        if self._closed and not self._writing and not self._waiting and not self._finished.done():
            self._finished.set_result(None)
