"""A TCP proxy in front of one broker that can deliver an EndTxn request too late, as a network may.

Armed, it takes the next EndTxn frame of any client, cuts that client's connection and keeps the frame. The client
reconnects and repeats the request, which succeeds. When the next transaction of the same transactional id commits its
offsets, the old frame goes first. A producer that was kept after the ambiguous call now has its new transaction ended
half way (KAFKA-17754); one that was replaced has a newer epoch, and the frame is refused.

It can also say that a topic has no leader: Produce requests are cut off, and in Metadata responses the leaders of its
partitions are missing. A batch that waits for a leader for too long fails without an error of its transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass

PRODUCE, METADATA, END_TXN = 0, 3, 26
TXN_OFFSET_COMMIT = 28
METADATA_VERSION = 5  # the one that aiokafka asks for, and that is read here
LEADER_NOT_AVAILABLE, NO_LEADER = 5, -1


@dataclass(slots=True, kw_only=True)
class _Held:
    """A frame that is late, and the broker's side of the connection it came on."""

    transactional_id: bytes
    frame: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass(slots=True)
class ProxyFaults:
    """What the proxies of one cluster share: the two coordinators of a transaction may be different brokers."""

    armed: bool = False  # the next EndTxn will be late
    held: _Held | None = None
    released: int = 0  # late frames that were delivered
    leaderless: str = ""  # the topic that seems to have no leader


class FaultProxy:
    """Listens on `port`; everything goes to `target_port` of 127.0.0.1 unchanged, but for what `ProxyFaults` says."""

    def __init__(self, target_port: int, faults: ProxyFaults) -> None:
        self.port = 0
        self._target_port = target_port
        self._faults = faults
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
        asked: dict[int, int] = {}  # Metadata requests that are not answered: correlation id, version
        back = asyncio.create_task(self._relay(upstream_reader, writer, asked), name="proxy: broker to client")
        try:
            await self._forward(reader, upstream_reader, upstream_writer, back, asked)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            back.cancel()
            writer.close()
            if self._faults.held is None or self._faults.held.writer is not upstream_writer:
                upstream_writer.close()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        upstream_reader: asyncio.StreamReader,
        upstream_writer: asyncio.StreamWriter,
        back: asyncio.Task[None],
        asked: dict[int, int],
    ) -> None:
        while True:
            size = await reader.readexactly(4)
            payload = await reader.readexactly(struct.unpack(">i", size)[0])
            key, version, correlation_id = struct.unpack(">hhi", payload[:8])
            if key == METADATA:
                asked[correlation_id] = version
            if key == PRODUCE and self._faults.leaderless.encode() in payload and self._faults.leaderless:
                return  # the connection is cut, and the client asks who leads
            if key == END_TXN and self._faults.armed:
                self._faults.armed = False
                back.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await back  # two coroutines must not wait for one stream
                self._faults.held = _Held(
                    transactional_id=_transactional_id(payload),
                    frame=size + payload,
                    reader=upstream_reader,
                    writer=upstream_writer,
                )
                return
            held = self._faults.held
            if key == TXN_OFFSET_COMMIT and held and held.transactional_id == _transactional_id(payload):
                await self._release()
            upstream_writer.write(size + payload)
            await upstream_writer.drain()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, int]) -> None:
        """Responses go back as they are, but for leaders that are not to be seen."""
        try:
            while True:
                size = await reader.readexactly(4)
                payload = await reader.readexactly(struct.unpack(">i", size)[0])
                version = asked.pop(struct.unpack(">i", payload[:4])[0], None)
                if version == METADATA_VERSION and self._faults.leaderless:
                    payload = _without_leaders(payload, self._faults.leaderless)
                writer.write(size + payload)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _release(self) -> None:
        """The late frame is answered; whatever the answer is, nobody waits for it."""
        held, self._faults.held = self._faults.held, None
        if held is None:
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            held.writer.write(held.frame)
            await held.writer.drain()
            size = await held.reader.readexactly(4)
            await held.reader.readexactly(struct.unpack(">i", size)[0])
            self._faults.released += 1
        held.writer.close()


def _without_leaders(response: bytes, topic: str) -> bytes:
    """A Metadata response, version 5, in which the partitions of `topic` have no leader."""
    changed, at = bytearray(response), 8  # after correlation id and throttle time

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f">{kind}", changed, at)
        at += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal at
        length = max(number("h"), 0)
        at += length
        return changed[at - length : at].decode()

    for _ in range(number("i")):  # brokers: id, host, port, rack
        number("i")
        text()
        number("i")
        text()
    text()  # the cluster's id
    number("i")  # its controller
    for _ in range(number("i")):
        number("h")
        name = text()
        number("b")
        for _ in range(number("i")):
            if name == topic:
                struct.pack_into(">h", changed, at, LEADER_NOT_AVAILABLE)
                struct.pack_into(">i", changed, at + 6, NO_LEADER)
            at += 10  # error, partition, leader
            for _ in range(3):  # replicas, those in sync, those offline
                count = number("i")
                at += 4 * count
    return bytes(changed)


def _transactional_id(payload: bytes) -> bytes:
    """Of an EndTxn or TxnOffsetCommit: the first field after api key, version, correlation id and client id."""
    (client,) = struct.unpack(">h", payload[8:10])
    at = 10 + max(0, client)
    (length,) = struct.unpack(">h", payload[at : at + 2])
    return payload[at + 2 : at + 2 + length]
