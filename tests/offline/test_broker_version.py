"""Which Kafka answers: read off one response, and simply unknown where that says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.offline import broker_version
from sidecar.offline.broker_version import MAY_SKIP_MARKERS_FROM, metadata_version, warning
from sidecar.settings.offline import OfflineSettings


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def features(**highest: int) -> bytes:
    """A tagged field with the highest version of each feature."""
    each = [
        varint(len(name) + 1) + name.encode() + struct.pack(">hh", 0, high) + b"\x00" for name, high in highest.items()
    ]
    content = varint(len(each) + 1) + b"".join(each)
    return varint(broker_version.SUPPORTED_FEATURES) + varint(len(content)) + content


def response(*tagged: bytes, error: int = 0, keys: int = 2) -> bytes:
    """An answer to ApiVersions: correlation id, error, what each request may be, throttling, tagged fields."""
    known = b"".join(struct.pack(">hhh", key, 0, 9) + b"\x00" for key in range(keys))
    return (
        struct.pack(">ih", 1, error)
        + varint(keys + 1)
        + known
        + struct.pack(">i", 0)
        + varint(len(tagged))
        + b"".join(tagged)
    )


METADATA = {"metadata.version": 29}
OTHER_TAG = varint(7) + varint(3) + b"abc"


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (response(features(**METADATA)), 29),
        (response(OTHER_TAG, features(**{"group.version": 1, **METADATA})), 29),
        (response(features(**METADATA), keys=200), 29),
        (response(features(**{"group.version": 1})), None),
        (response(), None),
        (response(OTHER_TAG), None),
        (response(error=35), None),  # it does not know this version of the request
    ],
)
async def test_the_highest_version_of_the_metadata_is_found_among_what_the_broker_says(
    answer: bytes, version: int | None
) -> None:
    async with broker(answer) as port:
        assert await metadata_version(settings(f"127.0.0.1:{port}")) == version


@asynccontextmanager
async def broker(answer: bytes | None) -> AsyncIterator[int]:
    """Answers each request with this; closes the connection if that is None."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = struct.unpack(">i", await reader.readexactly(4))[0]
        key, version = struct.unpack(">hh", (await reader.readexactly(size))[:4])
        assert (key, version) == (18, 3)
        if answer is not None:
            writer.write(struct.pack(">i", len(answer)) + answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def settings(servers: str) -> OfflineSettings:
    return OfflineSettings(bootstrap_servers=servers, request_timeout_s=5.0)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: response()[:-1] + tail))
def test_an_answer_of_any_bytes_is_a_version_or_unknown(answer: bytes) -> None:
    with contextlib.suppress(ValueError, struct.error):  # `metadata_version` takes these for unknown
        assert isinstance(broker_version._supported(answer), int | None)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request", response(features(**METADATA))[:-4], b"\xff" * 40]
)
async def test_whoever_answers_something_else_is_unknown(answer: bytes) -> None:
    async with broker(answer) as port:
        assert await metadata_version(settings(f"127.0.0.1:{port}")) is None


async def test_a_server_that_cannot_be_reached_or_closes_is_passed_over() -> None:
    async with broker(None) as silent, broker(response(features(**METADATA))) as good:
        assert await metadata_version(settings(f"127.0.0.1:{silent}, 127.0.0.1:1,127.0.0.1:{good}")) == 29
        with pytest.raises(OSError, match="no bootstrap server says its version"):
            await metadata_version(settings(f"127.0.0.1:{silent}"))


@pytest.mark.parametrize(
    ("server", "asked"),
    [
        ("kafka", ("kafka", 9092)),
        ("kafka:9093", ("kafka", 9093)),
        ("[::1]:9093", ("::1", 9093)),
        ("[::1]", ("::1", 9092)),
        ("::1", ("::1", 9092)),
    ],
)
async def test_a_server_is_asked_where_the_client_looks_for_it(
    server: str, asked: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, int]] = []

    async def note(host: str, port: int, _: Any) -> int:
        found.append((host, port))
        return 29

    monkeypatch.setattr(broker_version, "_ask", note)
    assert await metadata_version(settings(server)) == 29
    assert found == [asked]


def test_a_broker_that_may_tear_transactions_is_warned_of_unless_the_fence_is_set() -> None:
    told = warning(MAY_SKIP_MARKERS_FROM, abort_fence=False)
    assert told is not None
    assert "abort_fence" in told
    assert warning(MAY_SKIP_MARKERS_FROM, abort_fence=True) is None
    assert warning(MAY_SKIP_MARKERS_FROM - 1, abort_fence=False) is None
    assert warning(None, abort_fence=False) is None
