"""Calls that no gRPC library would send: they are refused, and nobody else notices."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2

from sidecar.frontend.grpc_server import MethodServer
from sidecar.triton import wire
from sidecar.triton.client import SERVICE
from tests.fakes.sidecar import Sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request, status_of


async def test_what_is_no_grpc_is_no_fault_of_ours(sidecar: Sidecar, caplog: pytest.LogCaptureFixture) -> None:
    host, port = sidecar.address.split(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for raw in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1_000, preface + b"\xff" * 1_000):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(raw)
        async with asyncio.timeout(5):
            while await reader.read(1_000):
                pass
        writer.close()
    answer = await sidecar.unary("ServerLive", wire.InferRequest(), service_pb2.ServerLiveResponse)
    assert answer.live
    assert caplog.records == []


@pytest.mark.parametrize("path", ["/nobody/Nothing", f"/{SERVICE}/Nothing", "/", "//", f"/{SERVICE}/"])
async def test_a_method_that_is_not_there_is_unimplemented(sidecar: Sidecar, path: str) -> None:
    ask: Any = sidecar.channel.unary_unary(path)
    assert (await status_of(ask(b"")))[0] is grpc.StatusCode.UNIMPLEMENTED


def raw_call(path: bytes, *metadata: tuple[bytes, bytes]) -> bytes:
    """The bytes of one unary call with an empty message, as no gRPC library would send them."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload

    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *metadata,
    )
    head = b"".join(bytes((0, len(name))) + name + bytes((len(value),)) + value for name, value in fields)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    return preface + frame(1, 4, 1, head) + frame(0, 1, 1, bytes(5))


LIVE = f"/{SERVICE}/ServerLive".encode()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (raw_call(LIVE), b"grpc-status\x010"),
        (raw_call(b"/x\xff/y"), b"Method not found!"),  # grpc.aio alone would shut the server down
        (raw_call(LIVE, (b"x-tenant", b"a\xff")), b"metadata 'x-tenant' is no printable ASCII"),
        (raw_call(LIVE, (b"x-tenant", b"a\x00")), b"metadata 'x-tenant' is no printable ASCII"),
        (raw_call(LIVE, (b"x-tenant", b"a\nb")), b"metadata 'x-tenant' is no printable ASCII"),
        (raw_call(LIVE, (b"X-Tenant", b"a")), b"Illegal header key"),
        (raw_call(LIVE, (b"x-bin", b"!!!")), b"illegal base64"),
    ],
)
async def test_a_call_that_no_library_would_send_harms_nobody(
    sidecar: Sidecar, triton: FakeTriton, caplog: pytest.LogCaptureFixture, raw: bytes, expected: bytes
) -> None:
    other = sidecar.stream()
    await other.write(ids_request("other"))
    running = await triton.next()
    host, port = sidecar.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw)
    answer = b""
    async with asyncio.timeout(5):
        while expected not in answer:
            answer += await reader.read(10_000)
    writer.close()
    running.tokens(4, final=True)
    assert (await other.read()).infer_response.id == "other"
    await other.done_writing()
    assert caplog.records == []


async def test_a_server_stops_while_calls_of_unknown_methods_come() -> None:
    server = MethodServer(())
    server.serve("a.Service", {})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask: Any = channel.unary_unary("/nobody/Nothing")
        asking = [ask(b"") for _ in range(20)]
        assert await asking[0].code() is grpc.StatusCode.UNIMPLEMENTED
        async with asyncio.timeout(5):
            await server.stop(None)
        codes = {await each.code() for each in asking}
    assert codes <= {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_an_unknown_method_is_refused_whatever_its_caller_sends_or_how_long_it_stays(sidecar: Sidecar) -> None:
    stream: Any = sidecar.channel.stream_stream("/nobody/Nothing")()
    assert await stream.code() is grpc.StatusCode.UNIMPLEMENTED
    ask: Any = sidecar.channel.unary_unary("/nobody/Nothing")
    assert await ask(b"x" * 1_000_000).code() is grpc.StatusCode.UNIMPLEMENTED
    left = ask(b"")
    left.cancel()
    assert (await sidecar.unary("ServerLive", wire.InferRequest(), service_pb2.ServerLiveResponse)).live
