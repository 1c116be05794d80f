"""The server that callers see: its methods, and its bounds on messages and connections."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2

from sidecar.core.errors import SettingsError
from sidecar.frontend.grpc_server import MethodServer
from sidecar.frontend.passthrough import Passthrough
from sidecar.frontend.server import ABOUT_A_MODEL, bind
from sidecar.settings.aliases import Rule
from sidecar.settings.limits import MIB, LimitSettings
from sidecar.triton import wire
from sidecar.triton.client import SERVICE
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request, status_of

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


async def test_a_message_beyond_the_limit_is_refused_and_names_it(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, limits=LimitSettings(message_bytes_max=MIB)) as sidecar:
        ask: Any = sidecar.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        code, details, _ = await status_of(ask(b"x" * (MIB + 1)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MIB) in details


async def test_a_small_message_that_unpacks_beyond_the_limit_is_refused(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, limits=LimitSettings(message_bytes_max=MIB)) as sidecar:
        ask: Any = sidecar.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        code, _, _ = await status_of(ask(b"x" * 64 * MIB, compression=grpc.Compression.Gzip))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_beyond_grpcs_bound_is_refused(sidecar: Sidecar) -> None:
    call = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=(("x-tenant", "t" * 40_000),))
    assert (await status_of(call))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_idle_connection_is_closed_and_one_with_a_stream_is_not(triton: FakeTriton) -> None:
    limits = LimitSettings(connection_idle_s=0.05)
    async with (
        running_sidecar({"e0": triton}, limits=limits) as sidecar,
        grpc.aio.insecure_channel(sidecar.address, options=OWN_CONNECTION) as other,
    ):
        stream = sidecar.stream()
        await stream.write(ids_request("long"))
        request = await triton.next()
        live: Any = other.unary_unary(f"/{SERVICE}/ServerLive")
        await live(b"")
        state = other.get_state()
        async with asyncio.timeout(5):
            while state is grpc.ChannelConnectivity.READY:
                await other.wait_for_state_change(state)
                state = other.get_state()
        await live(b"")  # the library connects again
        request.tokens(4, final=True)
        assert (await stream.read()).infer_response.id == "long"
        await stream.done_writing()


async def test_who_connects_and_says_nothing_keeps_nobody_out_and_is_disconnected(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, limits=LimitSettings(handshake_timeout_s=0.1)) as sidecar:
        host, port = sidecar.address.split(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
        answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
        (await triton.next()).tokens(4, final=True)
        await answer
        for reader, writer in silent:
            async with asyncio.timeout(5):
                while await reader.read(1_000):  # the server's settings, then the end
                    pass
            writer.close()


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
async def test_a_question_about_an_alias_is_asked_about_the_model_that_it_stands_for(
    triton: FakeTriton, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str | None]] = []

    async def unary(_: Passthrough, name: str, raw: bytes, _context: Any, model: str | None = None) -> bytes:
        asked.append((name, ABOUT_A_MODEL[name].FromString(raw).name, model))
        return b""

    monkeypatch.setattr(Passthrough, "unary", unary)
    async with running_sidecar({"e0": triton}, aliases={"gpt": (Rule(model="tensorrt_llm"),)}) as sidecar:
        ask: Any = sidecar.channel.unary_unary(f"/{SERVICE}/{method}")
        for name in ("gpt", "tensorrt_llm", "resnet"):
            await ask(ABOUT_A_MODEL[method](name=name, version="1").SerializeToString())
    assert asked == [(method, name, name) for name in ("ensemble", "tensorrt_llm", "resnet")]


@pytest.mark.parametrize("method", [*ABOUT_A_MODEL])
async def test_a_question_that_cannot_be_read_is_tritons_to_refuse(
    sidecar: Sidecar, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bytes]] = []

    async def unary(_: Passthrough, name: str, raw: bytes, _context: Any, model: str | None = None) -> bytes:
        assert model is None
        asked.append((name, raw))
        return b""

    monkeypatch.setattr(Passthrough, "unary", unary)
    ask: Any = sidecar.channel.unary_unary(f"/{SERVICE}/{method}")
    await ask(b"\xff")
    assert asked == [(method, b"\xff")]


async def test_a_port_that_is_taken_or_none_is_a_setting_to_change(sidecar: Sidecar) -> None:
    server = MethodServer(LimitSettings().server_options())
    for address in (sidecar.address, "[::g]:1"):
        with pytest.raises(SettingsError, match=f"listen: cannot bind {re.escape(address)}: "):
            bind(server, address)
    assert bind(server, "127.0.0.1:0") > 0
    await server.stop(None)


async def test_every_method_of_tritons_service_is_served() -> None:
    served: dict[str, set[str]] = {}

    class Noting(MethodServer):
        def serve(self, service: str, handlers: Any) -> None:
            served[service] = {*handlers}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidecar.frontend.server.MethodServer", Noting)
        async with FakeTriton() as triton, running_sidecar({"e0": triton}):
            pass
    methods = {each.name for each in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    assert served[SERVICE] == methods
    assert served["grpc.health.v1.Health"] == {"Check", "Watch"}


async def test_of_many_calls_at_once_grpc_drops_none(triton: FakeTriton) -> None:
    async with (
        running_sidecar({"e0": triton}) as sidecar,
        grpc.aio.insecure_channel(sidecar.address, options=OWN_CONNECTION) as channel,
    ):
        open_stream: Any = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        live: Any = channel.unary_unary(f"/{SERVICE}/ServerLive")
        streams = [open_stream() for _ in range(1_000)]  # all that one connection may have, but for a few
        other = grpc.aio.insecure_channel(sidecar.address, options=OWN_CONNECTION)
        more: Any = other.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        streams += [more() for _ in range(1_000)]
        await live(b"")
        assert [each for each in streams if each.done()] == []
        for each in streams:
            each.cancel()
        await other.close()
