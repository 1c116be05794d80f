"""Which Apache Kafka answers: brokers of some releases can tear transactions, and an operator should know before.

No request of aiokafka tells the release, so this sends one ApiVersions request (version 3, which needs no login) and
reads the highest metadata.version that the broker supports: each release has its own. A broker that is not Apache
Kafka, or is older than that request, is simply unknown.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from ssl import SSLContext

from aiokafka.conn import collect_hosts

from sidecar.offline.kafka_options import client_options
from sidecar.settings.offline import OfflineSettings

API_VERSIONS, VERSION = 18, 3
SUPPORTED_FEATURES = 0  # tag of the response
# Highest supported metadata.version: 4.2.1 says 29, 4.3.1 says 30 (measured). Releases 4.3.0, 4.3.1 and 4.4.0 may skip
# the transaction markers of a partition that has no leader at that moment (KAFKA-20734).
MAY_SKIP_MARKERS_FROM = 30


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A response being read from left to right."""

    data: bytes
    at: list[int]

    def number(self, kind: str) -> int:
        value: int = struct.unpack_from(f">{kind}", self.data, self.at[0])[0]
        self.at[0] += struct.calcsize(kind)
        return value

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.number("B")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def text(self) -> str:
        length = self.varint() - 1
        self.at[0] += length
        return self.data[self.at[0] - length : self.at[0]].decode()

    def skip_tags(self) -> None:
        for _ in range(self.varint()):
            self.varint()
            size = self.varint()
            self.at[0] += size


async def metadata_version(settings: OfflineSettings) -> int | None:
    """The highest metadata.version that the first reachable bootstrap server supports; None if it does not say so.

    Raises OSError or TimeoutError if none can be reached.
    """
    options = client_options(settings)
    failure: Exception = OSError("no bootstrap server")
    # Read as the client reads them: a server may have no port, and an IPv6 address has brackets.
    for host, port, _ in collect_hosts(settings.bootstrap_servers, randomize=False):
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                return await _ask(host, port, options.get("ssl_context"))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            failure = error
    raise OSError(f"no bootstrap server says its version: {failure!r}")


def warning(version: int | None, abort_fence: bool) -> str | None:
    """Return what an operator should know about this broker, or None."""
    if version is None or version < MAY_SKIP_MARKERS_FROM or abort_fence:
        return None
    return (
        "this broker is Apache Kafka 4.3 or newer, which may skip transaction markers of a partition without a leader "
        "(KAFKA-20734): a record that was never committed can become visible. Use 4.2.1, or set abort_fence"
    )


async def _ask(host: str, port: int, ssl: SSLContext | None) -> int | None:
    reader, writer = await asyncio.open_connection(host, port, ssl=ssl)
    try:
        name = b"\x08sidecar" + b"\x021"  # compact strings: length + 1 first
        request = struct.pack(">hhih", API_VERSIONS, VERSION, 1, -1) + b"\x00" + name + b"\x00"
        writer.write(struct.pack(">i", len(request)) + request)
        await writer.drain()
        size = struct.unpack(">i", await reader.readexactly(4))[0]
        try:
            return _supported(await reader.readexactly(size))
        except (ValueError, struct.error):
            return None  # something else than Kafka listens there
    finally:
        writer.close()


def _supported(response: bytes) -> int | None:
    found = _Bytes(response, [4])  # after the correlation id
    if found.number("h"):
        return None  # a broker that does not know version 3 of the request
    for _ in range(found.varint() - 1):
        found.at[0] += 6
        found.skip_tags()
    found.number("i")
    for _ in range(found.varint()):
        tag, size = found.varint(), found.varint()
        if tag != SUPPORTED_FEATURES:
            found.at[0] += size
            continue
        for _ in range(found.varint() - 1):
            name, _low, high = found.text(), found.number("h"), found.number("h")
            found.skip_tags()
            if name == "metadata.version":
                return high
    return None
