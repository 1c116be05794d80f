"""TLS at every connection: who is believed, who is not, and certificates that change while they are in use."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from tritonclient.grpc import aio as aio_client
from tritonclient.utils import InferenceServerException

from dev.broker import free_ports
from sidecar.core.errors import SettingsError
from sidecar.settings.file import TracingSettings
from sidecar.settings.tls import ClientTlsSettings, TlsSettings
from sidecar.telemetry.http import Status, serve_http
from sidecar.telemetry.tracing import Tracing
from sidecar.tls import ChangingFiles, Material, material
from sidecar.triton import wire
from sidecar.triton.client import EngineClient
from tests.fakes.certificates import Authority, Pair
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request
from tests.telemetry.test_span_export import Collector


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 10  # each look at it comes later than the pause between two looks at the files
        return self.now_s


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "theirs", "stranger")


async def lives(address: str, credentials: grpc.ChannelCredentials, timeout_s: float = 5.0) -> bool:
    """Whether a new connection with these credentials is answered."""
    async with grpc.aio.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        ask: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            await ask(b"", timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True


async def answered(sidecar: Sidecar, triton: FakeTriton) -> None:
    """One request goes all the way."""
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
    (await triton.next()).tokens(4, final=True)
    await answer


# ---- callers ---------------------------------------------------------------------------------------------------------


async def test_a_caller_is_served_over_tls_and_one_without_is_not(authority: Authority, triton: FakeTriton) -> None:
    tls = TlsSettings(listen=authority.serving(authority.issue("sidecar")))
    async with running_sidecar({"e0": triton}, tls=tls, credentials=authority.trusted()) as sidecar:
        await answered(sidecar, triton)
        async with grpc.aio.insecure_channel(sidecar.address) as plain:
            ask: Any = plain.unary_unary("/grpc.health.v1.Health/Check")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(b"", timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_tritonclient_is_served_with_its_ssl_options(
    authority: Authority, stranger: Authority, triton: FakeTriton
) -> None:
    own, tls = authority.issue("caller"), TlsSettings(listen=authority.serving(authority.issue("sidecar"), authority))

    def client(ca: Authority, pair: Pair) -> Any:
        files = {"root_certificates": ca.certificate, "private_key": pair.key, "certificate_chain": pair.certificate}
        options = {name: str(path) for name, path in files.items()}
        return aio_client.InferenceServerClient(sidecar.address, ssl=True, **options)

    async with running_sidecar({"e0": triton}, tls=tls, credentials=authority.trusted(own)) as sidecar:
        async with client(authority, own) as good:
            assert await good.is_server_live()
        async with client(stranger, own) as misled:
            with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
                await misled.is_server_live(client_timeout=5)


async def test_a_caller_without_a_certificate_with_a_strangers_or_an_expired_one_is_not_let_in(
    authority: Authority, stranger: Authority, triton: FakeTriton
) -> None:
    tls = TlsSettings(listen=authority.serving(authority.issue("sidecar"), authority))
    own = authority.issue("caller")
    theirs, late = stranger.issue("caller"), authority.issue("late", expired=True)
    async with running_sidecar({"e0": triton}, tls=tls, credentials=authority.trusted(own)) as sidecar:
        assert await lives(sidecar.address, authority.trusted(own))
        for pair in (None, theirs, late):
            assert not await lives(sidecar.address, authority.trusted(pair))
        await answered(sidecar, triton)


async def test_an_expired_certificate_of_the_sidecar_is_not_believed(authority: Authority, triton: FakeTriton) -> None:
    tls = TlsSettings(listen=authority.serving(authority.issue("sidecar", expired=True)))
    async with running_sidecar({"e0": triton}, tls=tls, credentials=authority.trusted()) as sidecar:
        assert not await lives(sidecar.address, authority.trusted())


@pytest.mark.usefixtures("no_pause")
async def test_a_renewed_certificate_is_shown_to_the_next_connection_and_the_first_one_goes_on(
    authority: Authority, stranger: Authority, triton: FakeTriton
) -> None:
    pair = authority.issue("sidecar")
    tls = TlsSettings(listen=authority.serving(pair))
    async with running_sidecar({"e0": triton}, tls=tls, credentials=authority.trusted()) as sidecar:
        await answered(sidecar, triton)
        pair.replaced_by(stranger.issue("sidecar"))
        assert await lives(sidecar.address, stranger.trusted())
        assert not await lives(sidecar.address, authority.trusted())
        await answered(sidecar, triton)


@pytest.mark.usefixtures("no_pause")
async def test_a_renewal_that_does_not_fit_is_told_and_the_certificate_before_stays(
    authority: Authority, triton: FakeTriton, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.issue("sidecar")
    tls = TlsSettings(listen=authority.serving(pair))
    async with running_sidecar({"e0": triton}, tls=tls, credentials=authority.trusted()) as sidecar:
        pair.key.write_bytes(authority.issue("other").key.read_bytes())
        for _ in range(3):
            assert await lives(sidecar.address, authority.trusted())
    told = [each.getMessage() for each in caplog.records if "stay in use" in each.getMessage()]
    assert len(told) == 1
    assert told[0].startswith(f"tls.listen: {pair.certificate} and {pair.key} are no certificate and its key")


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at whenever somebody asks."""
    monkeypatch.setattr("sidecar.tls.LOOK_PERIOD_S", 0.0)


# ---- Triton ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pause")
async def test_an_engine_is_reached_over_mutual_tls_and_again_with_a_renewed_certificate(
    authority: Authority,
) -> None:
    server = Material(authority.serving(authority.issue("triton"), authority), "test")
    own = authority.issue("sidecar")
    tls = TlsSettings(engines=authority.believed(own))
    async with (
        FakeTriton(credentials=server.server_credentials()) as triton,
        running_sidecar({"e0": triton}, tls=tls) as sidecar,
    ):
        stream = sidecar.stream()
        await stream.write(ids_request("long"))
        long = await triton.next()
        own.replaced_by(authority.issue("renewed"))
        await answered(sidecar, triton)  # on a channel of its own
        long.tokens(4, final=True)
        assert (await stream.read()).infer_response.id == "long"
        await stream.done_writing()


@pytest.mark.parametrize("fault", ["the authority is a stranger", "no certificate is shown", "another host's name"])
async def test_an_engine_that_is_not_believed_or_does_not_believe_is_unavailable(
    authority: Authority, stranger: Authority, fault: str
) -> None:
    server = Material(authority.serving(authority.issue("triton"), authority), "test")
    own = authority.issue("sidecar")
    settings = {
        "the authority is a stranger": stranger.believed(own),
        "no certificate is shown": authority.believed(),
        "another host's name": ClientTlsSettings(
            ca_file=authority.certificate,
            certificate_file=own.certificate,
            key_file=own.key,
            server_name="engine.example",
        ),
    }[fault]
    async with (
        FakeTriton(credentials=server.server_credentials()) as triton,
        EngineClient(triton.target, tls=Material(settings, "tls.engines")) as client,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.raw_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


# ---- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pause")
async def test_the_http_port_speaks_tls_and_shows_a_renewed_certificate(
    authority: Authority, stranger: Authority, sidecar: Sidecar
) -> None:
    pair, address = authority.issue("sidecar"), f"127.0.0.1:{free_ports(1)[0]}"
    status = Status(sidecar.driver.scheduler.snapshot, sidecar.metrics, "test")
    served = await serve_http(address, status, sidecar.metrics, tls=material(authority.serving(pair), "tls.http"))

    async def healthy(believed: Authority) -> bool:
        context = ssl.create_default_context(cafile=str(believed.certificate))
        async with aiohttp.ClientSession() as http:
            try:
                async with http.get(f"https://{address}/healthz", ssl=context) as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectorCertificateError:
                return False

    assert (await healthy(authority), await healthy(stranger)) == (True, False)
    pair.replaced_by(stranger.issue("sidecar"))
    assert (await healthy(authority), await healthy(stranger)) == (False, True)
    await served.cleanup()


async def test_the_http_port_lets_in_whom_its_authority_signed(
    authority: Authority, stranger: Authority, sidecar: Sidecar
) -> None:
    address, asks = f"127.0.0.1:{free_ports(1)[0]}", authority.serving(authority.issue("sidecar"), authority)
    status = Status(sidecar.driver.scheduler.snapshot, sidecar.metrics, "test")
    served = await serve_http(address, status, sidecar.metrics, tls=material(asks, "tls.http"))

    async def answers(pair: Pair | None) -> bool:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        async with aiohttp.ClientSession() as http:
            try:
                async with http.get(f"https://{address}/healthz", ssl=context) as answer:
                    return answer.status == 200
            except (aiohttp.ClientError, ssl.SSLError, OSError):
                return False

    assert await answers(authority.issue("prometheus"))
    assert not await answers(None)
    assert not await answers(stranger.issue("prometheus"))
    await served.cleanup()


async def test_spans_reach_a_collector_over_mutual_tls(authority: Authority) -> None:
    server, collector = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    shown = Material(authority.serving(authority.issue("collector"), authority), "test")
    port = server.add_secure_port("127.0.0.1:0", shown.server_credentials())
    await server.start()
    settings = TracingSettings(endpoint=f"https://127.0.0.1:{port}")
    own = Material(authority.believed(authority.issue("sidecar")), "tls.tracing")
    tracing = Tracing(settings, address="127.0.0.1:1", version="test", tls=own)
    tracing.end_rpc(tracing.rpc({}), "method", "OK")
    await tracing.close()
    await server.stop(None)
    assert (len(collector.requests), tracing.dropped_spans) == (1, 0)


# ---- files -----------------------------------------------------------------------------------------------------------


def broken_key(authority: Authority, pair: Pair) -> None:
    pair.key.write_bytes(authority.issue("other").key.read_bytes())


def no_key(_: Authority, pair: Pair) -> None:
    pair.key.unlink()


def no_pem(_: Authority, pair: Pair) -> None:
    pair.certificate.write_text("not a certificate")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(broken_key, "KEY_VALUES_MISMATCH"), (no_key, "cannot read .*: No such file"), (no_pem, "are no certificate")],
)
def test_what_cannot_be_used_at_the_start_is_a_setting_to_change(
    authority: Authority, spoil: Callable[[Authority, Pair], None], said: str
) -> None:
    pair = authority.issue("sidecar")
    spoil(authority, pair)
    with pytest.raises(SettingsError, match=f"^tls.listen: .*{said}"):
        Material(authority.serving(pair), "tls.listen")


def test_an_authority_that_is_no_certificate_is_a_setting_to_change(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(SettingsError, match=r"^tls.engines: .*ca.pem holds no certificate"):
        Material(ClientTlsSettings(ca_file=tmp_path / "ca.pem"), "tls.engines")


def test_no_text_of_the_material_shows_the_key(authority: Authority) -> None:
    made = Material(authority.serving(authority.issue("sidecar")), "tls.listen")
    assert "PRIVATE" not in repr(vars(made))


def test_files_are_looked_at_once_a_second(tmp_path: Path) -> None:
    times = iter((0.0, 0.9, 1.1, 1.2))
    (tmp_path / "a").write_text("1")
    files = ChangingFiles([tmp_path / "a"], lambda: next(times))
    (tmp_path / "a").write_text("22")
    assert [files.changed() is not None for _ in range(3)] == [False, True, False]


def test_half_written_files_are_read_again_when_they_are_whole(authority: Authority) -> None:
    pair, clock = authority.issue("sidecar"), Clock()
    made = Material(authority.serving(pair), "tls.listen", clock)
    whole = authority.issue("other")
    pair.key.write_bytes(whole.key.read_bytes()[:40])
    assert made.refresh() == 0
    pair.key.write_bytes(whole.key.read_bytes())
    assert made.refresh() == 0  # a key of another certificate
    pair.certificate.write_bytes(whole.certificate.read_bytes())
    assert made.refresh() == 1
