"""A TCP proxy in front of one broker that can deliver an EndTxn request too late, as a network may.

Armed, it takes the next EndTxn frame of any client, cuts that client's connection and keeps the frame. The client
reconnects and repeats the request, which succeeds. When the next transaction of the same transactional id commits its
offsets, the old frame goes first. A producer that was kept after the ambiguous call now has its new transaction ended
half way (KAFKA-17754); one that was replaced has a newer epoch, and the frame is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass

END_TXN = 26
TXN_OFFSET_COMMIT = 28


@dataclass(slots=True, kw_only=True)
class _Held:
    """A frame that is late, and the broker's side of the connection it came on."""

    transactional_id: bytes
    frame: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass(slots=True)
class LateFrames:
    """What the proxies of one cluster share: the two coordinators of a transaction may be different brokers."""

    armed: bool = False  # the next EndTxn will be late
    held: _Held | None = None
    released: int = 0  # late frames that were delivered


class EndTxnProxy:
    """Listens on `port`; everything goes to `target_port` of 127.0.0.1 unchanged, but for an EndTxn that is late."""

    def __init__(self, target_port: int, late: LateFrames) -> None:
        self.port = 0
        self._target_port = target_port
        self._late = late
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listening."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """No longer listening; connections end with the process or their peers."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()  # the broker is down: so are we
            return
        back = asyncio.create_task(_relay(upstream_reader, writer), name="proxy: broker to client")
        try:
            await self._forward(reader, upstream_reader, upstream_writer, back)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            back.cancel()
            writer.close()
            if self._late.held is None or self._late.held.writer is not upstream_writer:
                upstream_writer.close()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        upstream_reader: asyncio.StreamReader,
        upstream_writer: asyncio.StreamWriter,
        back: asyncio.Task[None],
    ) -> None:
        while True:
            size = await reader.readexactly(4)
            payload = await reader.readexactly(struct.unpack(">i", size)[0])
            key = struct.unpack(">h", payload[:2])[0]
            if key == END_TXN and self._late.armed:
                self._late.armed = False
                back.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await back  # two coroutines must not wait for one stream
                self._late.held = _Held(
                    transactional_id=_transactional_id(payload),
                    frame=size + payload,
                    reader=upstream_reader,
                    writer=upstream_writer,
                )
                return
            held = self._late.held
            if key == TXN_OFFSET_COMMIT and held and held.transactional_id == _transactional_id(payload):
                await self._release()
            upstream_writer.write(size + payload)
            await upstream_writer.drain()

    async def _release(self) -> None:
        """The late frame is answered; whatever the answer is, nobody waits for it."""
        held, self._late.held = self._late.held, None
        if held is None:
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            held.writer.write(held.frame)
            await held.writer.drain()
            size = await held.reader.readexactly(4)
            await held.reader.readexactly(struct.unpack(">i", size)[0])
            self._late.released += 1
        held.writer.close()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def _transactional_id(payload: bytes) -> bytes:
    """Of an EndTxn or TxnOffsetCommit: the first field after api key, version, correlation id and client id."""
    (client,) = struct.unpack(">h", payload[8:10])
    at = 10 + max(0, client)
    (length,) = struct.unpack(">h", payload[at : at + 2])
    return payload[at + 2 : at + 2 + length]
