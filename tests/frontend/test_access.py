"""Callers with keys through a whole sidecar: who is let in, as whom, and what a header can still say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import aio as aio_client
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from sidecar.core.request import Lane
from sidecar.frontend.access import OPEN, OPERATORS, fingerprint
from sidecar.keys import hash_of
from sidecar.settings.keys import KeysSettings
from sidecar.settings.tls import TlsSettings
from sidecar.triton import wire
from sidecar.triton.client import SERVICE, stop_request
from tests.fakes.certificates import Authority
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import Arrivals, ids_of, ids_request, status_of

LABELS, BILLING, BOSS = "sk-labels", "sk-billing", "sk-boss"
LINES = (
    f"{{key: '{hash_of(LABELS)}', tenant: labels, lanes: [offline]}}",
    f"{{key: '{hash_of(BILLING)}', tenant: billing}}",
    f"{{key: '{hash_of(BOSS)}', tenant: ops, operator: true}}",
)


def write(path: Path, *lines: str) -> KeysSettings:
    path.write_text("".join(f"- {line}\n" for line in lines))
    return KeysSettings(file=path)


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeysSettings:
    monkeypatch.setattr("sidecar.tls.LOOK_PERIOD_S", 0.0)
    return write(tmp_path / "keys.yaml", *LINES)


def bearer(key: str, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"), *more)


def infer(sidecar: Sidecar, *metadata: tuple[str, str], asked: Any = None) -> Any:
    return sidecar.unary("ModelInfer", asked or ids_request("u"), wire.InferResponse, metadata=metadata, timeout=10)


async def test_without_a_valid_key_nothing_is_served_and_health_is_told(triton: FakeTriton, keys: KeysSettings) -> None:
    async with running_sidecar({"e0": triton}, keys=keys) as sidecar:
        for metadata in ((), (("authorization", LABELS),), bearer("sk-unknown"), bearer(hash_of(LABELS)), bearer("")):
            code, details, _ = await status_of(infer(sidecar, *metadata))
            assert code is grpc.StatusCode.UNAUTHENTICATED, metadata
            assert hash_of(LABELS) not in details
        stream = sidecar.stream(metadata=bearer("sk-unknown"))
        code = await stream.code()
        assert code is grpc.StatusCode.UNAUTHENTICATED
        ask: Any = sidecar.channel.unary_unary("/grpc.health.v1.Health/Check")
        await ask(b"")
        await sidecar.unary("ServerLive", service_pb2.ServerLiveRequest(), service_pb2.ServerLiveResponse)
        assert triton.idle


async def test_the_key_names_the_tenant_and_its_lane_and_does_not_reach_triton(
    triton: FakeTriton, keys: KeysSettings
) -> None:
    seen = Arrivals()
    async with running_sidecar({"e0": triton}, keys=keys, watcher=seen) as sidecar:
        answers = [
            infer(sidecar, *bearer(BILLING, ("x-else", "kept"))),
            infer(sidecar, *bearer(BILLING, ("x-lane", "offline"), ("x-tenant", "billing"))),
        ]
        for _ in answers:
            request = await triton.next()
            assert "authorization" not in request.metadata
            request.tokens(4, final=True)
        for each in answers:
            await each
        labels = infer(sidecar, *bearer(LABELS), asked=ids_request("l", stream=False))
        (await triton.next()).tokens(4, 5, 6, 7, final=True)
        await labels
    found = sorted((each.tenant, each.lane) for each in seen.requests)
    assert found == [("billing", Lane.OFFLINE), ("billing", Lane.ONLINE), ("labels", Lane.OFFLINE)]


@pytest.mark.parametrize(
    ("key", "said", "parameter"),
    [
        (BILLING, ("x-tenant", "labels"), False),
        (BILLING, ("x-tenant", "labels"), True),
        (BILLING, ("x-tenant", ""), True),
        (LABELS, ("x-lane", "online"), False),
        (LABELS, ("x-lane", "online"), True),
    ],
)
async def test_a_header_or_a_parameter_cannot_widen_what_the_key_grants(
    triton: FakeTriton, keys: KeysSettings, key: str, said: tuple[str, str], parameter: bool
) -> None:
    asked = ids_request("mine")
    if parameter:
        asked.parameters[said[0]].string_param = said[1]
    metadata = bearer(key) if parameter else bearer(key, said)
    async with running_sidecar({"e0": triton}, keys=keys) as sidecar:
        code, details, _ = await status_of(infer(sidecar, *metadata, asked=asked))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert details.startswith("[request id: mine] ")
        assert triton.idle


async def test_what_changes_triton_for_all_is_for_operators(triton: FakeTriton, keys: KeysSettings) -> None:
    named = {each.name for each in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    assert {each.rpartition("/")[2] for each in OPERATORS | OPEN} <= named
    load = service_pb2.RepositoryModelLoadRequest(model_name="m")
    async with running_sidecar({"e0": triton}, keys=keys) as sidecar:
        for method in sorted(OPERATORS):
            ask: Any = sidecar.channel.unary_unary(f"/{method}")
            assert (await status_of(ask(b"", metadata=bearer(BILLING))))[0] is grpc.StatusCode.PERMISSION_DENIED
        answer = service_pb2.RepositoryModelLoadResponse
        await sidecar.unary("RepositoryModelLoad", load, answer, metadata=bearer(BOSS))


async def test_shared_memory_which_all_know_by_its_name_is_for_operators(
    triton: FakeTriton, keys: KeysSettings
) -> None:
    reading, writing = ids_request("r"), ids_request("w")
    reading.inputs[0].parameters["shared_memory_region"].string_param = "theirs"
    output = writing.outputs.add(name="output_ids")
    output.parameters["shared_memory_region"].string_param = "theirs"
    elsewhere = wire.InferRequest(model_name="unscheduled", id="e")
    elsewhere.outputs.add(name="o").parameters["shared_memory_region"].string_param = "theirs"
    async with running_sidecar({"e0": triton}, keys=keys) as sidecar:
        for asked in (reading, writing, elsewhere):
            code, details, _ = await status_of(infer(sidecar, *bearer(BILLING), asked=asked))
            assert code is grpc.StatusCode.PERMISSION_DENIED, details
        assert triton.idle


async def test_a_stop_reaches_no_request_of_another_key_even_on_one_connection(
    triton: FakeTriton, keys: KeysSettings
) -> None:
    async with running_sidecar({"e0": triton}, keys=keys) as sidecar:
        mine, theirs = sidecar.stream(metadata=bearer(BILLING)), sidecar.stream(metadata=bearer(BOSS))
        await mine.write(ids_request("same"))
        running = await triton.next()
        await theirs.write(stop_request("tensorrt_llm", "same"))
        await theirs.done_writing()
        await theirs.read()
        assert triton.stopped == []
        running.tokens(4, final=True)
        assert ids_of(await mine.read()) == (4,)
        await mine.done_writing()


async def test_a_revoked_key_opens_nothing_more_and_what_it_began_ends_well(
    triton: FakeTriton, keys: KeysSettings
) -> None:
    async with running_sidecar({"e0": triton}, keys=keys) as sidecar:
        stream = sidecar.stream(metadata=bearer(BILLING))
        await stream.write(ids_request("before"))
        running = await triton.next()
        write(keys.file, LINES[0])
        await stream.write(ids_request("after"))
        refused = await stream.read()
        assert refused.error_message == "[request id: after] the key of this stream is not valid any more"
        assert (await status_of(infer(sidecar, *bearer(BILLING))))[0] is grpc.StatusCode.UNAUTHENTICATED
        running.tokens(4, final=True)
        assert ids_of(await stream.read()) == (4,)
        await stream.done_writing()


async def test_requests_and_tokens_beyond_the_keys_limit_are_refused_with_a_hint(
    triton: FakeTriton, tmp_path: Path
) -> None:
    keys = write(
        tmp_path / "keys.yaml",
        f"{{key: '{hash_of('few')}', tenant: few, requests_per_minute: 1}}",
        f"{{key: '{hash_of('short')}', tenant: short, tokens_per_minute: 8}}",
    )
    async with running_sidecar({"e0": triton}, keys=keys) as sidecar:
        for key, said in (("few", "1 requests a minute"), ("short", "8 tokens a minute")):
            answer = infer(sidecar, *bearer(key))
            request = await triton.next()
            code, details, trailing = await status_of(infer(sidecar, *bearer(key)))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert said in details
            assert 0 < int(dict(trailing)["retry-after-ms"]) <= 60_000
            request.tokens(4, final=True)
            await answer
        other = infer(sidecar, *bearer("short"), asked=ids_request("u", ids=(1,), output=1))
        (await triton.next()).tokens(4, final=True)
        await other  # of 3 + 4 booked tokens the one that was given and the prompt are used: 4 are left


async def test_the_weights_of_keys_reach_the_scheduler_and_change_with_the_file(
    triton: FakeTriton, keys: KeysSettings
) -> None:
    write(keys.file, f"{{key: '{hash_of(BILLING)}', tenant: billing, slots_max: 1}}")
    async with running_sidecar({"e0": triton}, keys=keys) as sidecar:
        stream = sidecar.stream(metadata=bearer(BILLING))
        for name in ("a", "b"):
            await stream.write(ids_request(name))
        first = await triton.next()
        await sidecar.until(lambda: sidecar.held.used > len(ids_request("a").SerializeToString()))
        assert sidecar.driver.in_flight == 1
        write(keys.file, f"{{key: '{hash_of(BILLING)}', tenant: billing, slots_max: 22}}")
        await sidecar.unary(
            "ModelReady",
            service_pb2.ModelReadyRequest(name="tensorrt_llm"),
            service_pb2.ModelReadyResponse,
            metadata=bearer(BILLING),
        )
        second = await triton.next()
        for each in (first, second):
            each.tokens(4, final=True)
            await stream.read()
        await stream.done_writing()


# ---- certificates ----------------------------------------------------------------------------------------------------


async def test_a_clients_certificate_names_the_tenant_and_is_revoked_by_its_line(
    triton: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.tls.LOOK_PERIOD_S", 0.0)
    authority, seen = Authority(tmp_path / "ca"), Arrivals()
    billing, labels, nobody = (authority.issue(name) for name in ("billing", "labels", "nobody"))
    lines = ("{certificate: billing, tenant: b}", f"{{certificate: 'sha256:{labels.fingerprint}', tenant: l}}")
    keys = write(tmp_path / "keys.yaml", *lines, f"{{key: '{hash_of(BILLING)}', tenant: b}}")
    tls = TlsSettings(listen=authority.serving(authority.issue("sidecar"), authority))

    async def code_of(pair: Any, *metadata: tuple[str, str]) -> Any:
        async with grpc.aio.secure_channel(
            sidecar.address, authority.trusted(pair), (("grpc.use_local_subchannel_pool", 1),)
        ) as channel:
            ask: Any = channel.unary_unary(f"/{SERVICE}/ServerMetadata")
            try:
                await ask(b"", metadata=metadata, timeout=5)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

    async with running_sidecar(
        {"e0": triton}, keys=keys, tls=tls, credentials=authority.trusted(billing), watcher=seen
    ) as sidecar:
        answer = infer(sidecar)
        (await triton.next()).tokens(4, final=True)
        await answer
        assert await code_of(labels) is grpc.StatusCode.OK
        assert await code_of(nobody) is grpc.StatusCode.UNAUTHENTICATED
        assert await code_of(nobody, *bearer(BILLING)) is grpc.StatusCode.OK
        assert await code_of(billing, *bearer(BILLING)) is grpc.StatusCode.OK
        assert await code_of(labels, *bearer(BILLING)) is grpc.StatusCode.UNAUTHENTICATED  # two tenants
        write(keys.file, lines[0])
        assert await code_of(labels) is grpc.StatusCode.UNAUTHENTICATED
        assert await code_of(billing) is grpc.StatusCode.OK
    assert [each.tenant for each in seen.requests] == ["b"]


def test_a_certificate_that_cannot_be_read_has_no_fingerprint() -> None:
    assert [fingerprint(each) for each in ({}, {"x509_pem_cert": [b"no"]}, {"x509_pem_cert": [b"\xff"]})] == [""] * 3


async def test_tritonclient_sends_its_key_as_a_header(triton: FakeTriton, keys: KeysSettings) -> None:
    async with (
        running_sidecar({"e0": triton}, keys=keys) as sidecar,
        aio_client.InferenceServerClient(sidecar.address) as client,
    ):
        assert (await client.get_server_metadata(headers={"authorization": f"Bearer {BILLING}"})).version
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            await client.get_server_metadata()


async def test_without_keys_the_tenant_is_who_the_header_says_and_authorization_goes_on_to_triton(
    triton: FakeTriton,
) -> None:
    seen = Arrivals()
    async with running_sidecar({"e0": triton}, watcher=seen) as sidecar:
        answer = infer(sidecar, *bearer("tritons-own", ("x-tenant", "anybody")))
        request = await triton.next()
        assert request.metadata["authorization"] == "Bearer tritons-own"
        request.tokens(4, final=True)
        await answer
    assert tenants(seen) == ["anybody"]


def tenants(seen: Arrivals) -> Sequence[str]:
    return [each.tenant for each in seen.requests]
