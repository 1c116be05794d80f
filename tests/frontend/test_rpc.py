"""Faults that nobody foresaw, statuses that gRPC could not carry, and bounds on what callers may take."""

from __future__ import annotations

import logging
from typing import Any

import grpc
import grpc.aio
import pytest

from sidecar.frontend import rpc
from sidecar.frontend.service import OnlineService
from sidecar.settings.limits import MIB, LimitSettings
from sidecar.telemetry import faults
from sidecar.triton import wire
from sidecar.triton.client import SERVICE
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request, status_of, text_request

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
SECRET = "the words of a prompt"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request of a scheduled model meets a defect whose exception quotes the prompt."""

    async def begin(*_: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr(OnlineService, "begin", begin)


@pytest.mark.usefixtures("broken")
async def test_an_unforeseen_fault_is_internal_and_quotes_nothing(
    sidecar: Sidecar, caplog: pytest.LogCaptureFixture
) -> None:
    code, details, _ = await status_of(sidecar.unary("ModelInfer", text_request("u", text=SECRET), wire.InferResponse))
    assert (code, details) == (grpc.StatusCode.INTERNAL, rpc.UNFORESEEN)
    (record,) = caplog.records
    assert "ModelInfer failed: KeyError at test_rpc.py" in record.getMessage()
    assert SECRET not in caplog.text


@pytest.mark.usefixtures("broken")
async def test_a_fault_on_a_stream_is_internal_and_no_group_of_exceptions(
    sidecar: Sidecar, caplog: pytest.LogCaptureFixture
) -> None:
    call = sidecar.stream()
    await call.write(text_request("u", text=SECRET))
    assert (await call.code(), await call.details()) == (grpc.StatusCode.INTERNAL, rpc.UNFORESEEN)
    assert SECRET not in caplog.text


@pytest.mark.usefixtures("broken")
async def test_the_same_fault_again_is_counted_and_not_logged_until_a_minute_has_passed(
    sidecar: Sidecar, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await status_of(sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse))
    assert len(caplog.records) == 1
    monkeypatch.setattr(faults, "LOG_AGAIN_S", 0.0)
    await status_of(sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse))
    assert "(2 more since it was last logged)" in caplog.records[-1].getMessage()


def test_details_fit_into_what_a_client_takes() -> None:
    assert rpc.details("short, ü") == "short, ü"
    assert rpc.details("a\ud800b") == "a?b"
    for text in ("x" * 100_000, "ü" * 100_000):
        cut = rpc.details(text)
        assert len(cut.encode()) <= rpc.DETAILS_BYTES_MAX
        assert cut[:900] + "..." == text[:900] + cut[-3:]


@pytest.mark.parametrize("name", ["x" * MIB, "ü" * MIB, "a\nb", "a\x00b"])
async def test_a_tensor_of_any_name_is_refused_with_a_status_that_arrives(sidecar: Sidecar, name: str) -> None:
    request = ids_request("u")
    wire.add_tensor(request, name, "INT32", (1,), (1, 1))
    code, details, _ = await status_of(sidecar.unary("ModelInfer", request, wire.InferResponse))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert name[:100] in details


async def test_binary_metadata_is_no_fault(sidecar: Sidecar, triton: FakeTriton) -> None:
    binary = (("x-tenant-bin", b"\x00\xff"),)
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=binary)
    (await triton.next()).tokens(4, final=True)
    await answer


async def test_a_compressed_request_is_served(sidecar: Sidecar, triton: FakeTriton) -> None:
    gzip = grpc.Compression.Gzip
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, compression=gzip)
    (await triton.next()).tokens(4, final=True)
    await answer


def big_request(request_id: str, tokens: int) -> Any:
    return ids_request(request_id, ids=(1,) * tokens, output=1)


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_bytes_of_all_waiting_requests_are_bounded(triton: FakeTriton, streamed: bool) -> None:
    limits = LimitSettings(message_bytes_max=1_000, held_bytes_max=1_000)
    async with running_sidecar({"e0": triton}, limits=limits) as sidecar:
        first = sidecar.unary("ModelInfer", big_request("first", 60), wire.InferResponse)
        running = await triton.next()
        fits, refused = (big_request(name, tokens) for name, tokens in (("fits", 40), ("refused", 63)))
        fits.inputs.add(name="x" * 100)  # refused by its tensor; its bytes are free again
        refused.parameters["note"].string_param = "x" * 500
        if streamed:
            call = sidecar.stream()
            await call.write(refused)
            answer = await call.read()
            assert "limits.held_bytes_max" in answer.error_message
            assert answer.infer_response.id == "refused"
            call.cancel()
        else:
            code, details, trailing = await status_of(sidecar.unary("ModelInfer", refused, wire.InferResponse))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "limits.held_bytes_max" in details
            assert trailing["retry-after-ms"] == "1000"
        for _ in range(10):
            code, _, _ = await status_of(sidecar.unary("ModelInfer", fits, wire.InferResponse))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
        running.tokens(1, final=True)
        await first
        await sidecar.until(lambda: sidecar.held.used == 0)


async def test_no_bytes_stay_held_after_a_stream_whatever_became_of_its_requests(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, slots=1) as sidecar:
        call = sidecar.stream()
        bad = ids_request("bad")
        wire.add_tensor(bad, "temprature", "FP32", (0.5,), (1, 1))
        for request in (bad, ids_request("runs"), ids_request("waits"), big_request("too long", 100)):
            await call.write(request)
        await triton.next()
        assert {(await call.read()).infer_response.id for _ in range(2)} == {"bad", "too long"}
        assert sidecar.held.used > 0
        call.cancel()
        await sidecar.until(lambda: sidecar.held.used == 0)


async def test_more_calls_than_may_be_open_are_refused(triton: FakeTriton, caplog: pytest.LogCaptureFixture) -> None:
    async with running_sidecar({"e0": triton}, limits=LimitSettings(calls_max=1)) as sidecar:
        stream = sidecar.stream()
        await stream.write(ids_request("open"))
        request = await triton.next()
        code, details, _ = await status_of(sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "limits.calls_max" in details
        request.tokens(4, final=True)
        await stream.done_writing()
        assert len([each async for each in stream]) == 1
        answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
        (await triton.next()).tokens(4, final=True)
        await answer
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_a_caller_who_goes_away_while_it_is_answered_is_no_fault_of_ours(
    sidecar: Sidecar, triton: FakeTriton, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        async with grpc.aio.insecure_channel(sidecar.address, options=OWN_CONNECTION) as leaving:
            call: Any = leaving.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
            await call.write(text_request("gone", output=30).SerializeToString())
            request = await triton.next()
            for _ in range(20):
                request.text("x" * 100_000)
            await call.read()
        await sidecar.until(lambda: sidecar.driver.in_flight == 0 and sidecar.held.used == 0)
    assert caplog.records == []
