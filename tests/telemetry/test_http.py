"""What operators see: metrics, health, status and the page."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import aiohttp
import grpc.aio
import pytest

from dev.broker import free_ports
from sidecar.core.engine import Limit
from sidecar.core.events import EngineDown, Measured
from sidecar.core.request import Lane
from sidecar.driver.probes import EngineProbes
from sidecar.settings.file import EngineEndpoint
from sidecar.telemetry.http import Status, serve_http
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.status_text import slot_strip
from sidecar.triton import wire
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request


@pytest.fixture
async def get(sidecar: Sidecar) -> AsyncIterator[Any]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    lane: Callable[[], Any] = partial(dict, state="<running>", stats={"items": []}, partitions=[])
    status = Status(sidecar.driver.scheduler.snapshot, sidecar.metrics, "test", parts={"offline": lane})
    runner = await serve_http(address, status, sidecar.metrics)
    async with aiohttp.ClientSession() as session:

        async def get_path(path: str) -> tuple[int, str, Any]:
            async with session.get(f"http://{address}{path}") as answer:
                return answer.status, await answer.text(), answer.headers

        yield get_path
    await runner.cleanup()


async def served(sidecar: Sidecar, triton: FakeTriton) -> None:
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
    request = await triton.next()
    request.tokens(3)
    request.tokens(4, final=True)
    await answer
    await sidecar.until(lambda: sidecar.driver.in_flight == 0)


def samples(page: str, name: str, **labels: str) -> list[float]:
    """The values of the samples of this name that have these labels."""
    return [
        float(line.rsplit(" ", 1)[1])
        for line in page.splitlines()
        if re.match(rf"{name}[{{ ]", line) and all(f'{key}="{value}"' in line for key, value in labels.items())
    ]


def sample(page: str, name: str, **labels: str) -> float:
    """The value of the one sample of this name that has these labels."""
    found = samples(page, name, **labels)
    assert len(found) == 1, (name, labels, found)
    return found[0]


async def page_with(get: Any, name: str, **labels: str) -> str:
    """The metrics once they have this sample: an RPC is counted after its caller has heard how it ended."""
    async with asyncio.timeout(20):
        while True:
            _, page, _ = await get("/metrics")
            if samples(page, name, **labels):
                return str(page)


async def test_a_request_is_counted_once_in_every_family_it_belongs_to(
    sidecar: Sidecar, triton: FakeTriton, get: Any
) -> None:
    await served(sidecar, triton)
    rpc = {"rpc_method": "inference.GRPCInferenceService/ModelInfer", "rpc_status_code": "OK"}
    page = await page_with(get, "rpc_server_call_duration_seconds_count", **rpc)
    online = {"lane": "online", "model": "tensorrt_llm"}
    assert sample(page, "sidecar_requests_total", **online, outcome="ok") == 1
    assert sample(page, "sidecar_tokens_total", **online, token_type="output") == 2
    assert sample(page, "sidecar_tokens_total", **online, token_type="input") == 3
    assert sample(page, "sidecar_dispatches_total", **online, kind="online") == 1
    assert sample(page, "sidecar_queue_wait_seconds_count", **online) == 1
    assert sample(page, "gen_ai_server_time_to_first_token_seconds_count", lane="online") == 1
    assert sample(page, "gen_ai_server_time_per_output_token_seconds_count", lane="online") == 1
    assert sample(page, "gen_ai_server_request_duration_seconds_count", lane="online", error_type="") == 1
    assert sample(page, "rpc_server_call_duration_seconds_count", **rpc) == 1
    assert sample(page, "sidecar_slot_seconds_total", lane="online") > 0
    assert sample(page, "sidecar_slots", model="tensorrt_llm") == 2


async def test_a_refused_rpc_is_counted_under_its_status(sidecar: Sidecar, get: Any) -> None:
    request = ids_request("u", ids=(1,) * 40, output=30)
    with pytest.raises(grpc.aio.AioRpcError):
        await sidecar.unary("ModelInfer", request, wire.InferResponse)
    refused = {"rpc_method": "inference.GRPCInferenceService/ModelInfer", "rpc_status_code": "INVALID_ARGUMENT"}
    page = await page_with(get, "rpc_server_call_duration_seconds_count", **refused)
    assert sample(page, "rpc_server_call_duration_seconds_count", **refused) == 1
    assert sample(page, "sidecar_requests_total", lane="online", outcome="rejected", error_type="too_large") == 1


async def test_every_counter_is_there_before_its_first_event(get: Any) -> None:
    _, page, _ = await get("/metrics")
    for lane, kind in (("online", "online"), ("offline", "backfill"), ("offline", "reserved"), ("offline", "resume")):
        assert sample(page, "sidecar_dispatches_total", lane=lane, kind=kind) == 0
    assert sample(page, "sidecar_requests_total", lane="offline", outcome="rejected", error_type="queue_full") == 0
    for result in ("due", "taken", "postponed", "lapsed"):
        assert sample(page, "sidecar_reserved_dispatches_total", result=result) == 0


async def test_what_is_not_known_of_reuse_has_no_sample_and_the_length_of_slices_has(get: Any) -> None:
    _, page, _ = await get("/metrics")
    assert sample(page, "sidecar_slice_factor", engine="e0") == 1
    assert "sidecar_kv_reuse_ratio{" not in page


async def test_the_load_of_others_has_no_sample_where_no_gauges_tell_of_it(sidecar: Sidecar, get: Any) -> None:
    _, page, _ = await get("/metrics")
    assert "sidecar_slots_foreign{" not in page
    sidecar.driver.handle(Measured(engine="e0", ok=True, active_requests=0))
    _, page, _ = await get("/metrics")
    assert sample(page, "sidecar_slots_foreign", engine="e0") == 0


async def test_the_limit_that_binds_is_one_and_all_others_zero(get: Any) -> None:
    _, page, _ = await get("/metrics")
    found = {limit: sample(page, "sidecar_limit_binding", engine="e0", limit=limit) for limit in Limit}
    assert [limit for limit, bound in found.items() if bound] == [Limit.NO_OFFLINE]


async def test_a_model_that_has_seen_nothing_is_exported_as_not_trusted_and_without_an_error(get: Any) -> None:
    _, page, _ = await get("/metrics")
    assert sample(page, "sidecar_latency_model_trusted", engine="e0") == 0
    assert sample(page, "sidecar_latency_model_seconds", engine="e0", term="token") == 0
    assert "sidecar_latency_model_error_ratio{" not in page
    assert sample(page, "sidecar_online_added_ratio", engine="e0", figure="ttft") == 0


async def test_a_request_is_judged_by_its_own_objective(sidecar: Sidecar, triton: FakeTriton, get: Any) -> None:
    await served(sidecar, triton)
    request = ids_request("u")
    request.parameters["ttft_objective_ms"].double_param = 1e-6  # nothing can be as fast
    answer = sidecar.unary("ModelInfer", request, wire.InferResponse)
    (await triton.next()).tokens(3, final=True)
    await answer
    _, page, _ = await get("/metrics")
    found = {
        (slo, verdict): sample(page, "sidecar_slo_events_total", slo=slo, verdict=verdict)
        for slo in ("ttft", "e2e", "availability")
        for verdict in ("good", "bad")
    }
    assert (found["ttft", "good"], found["ttft", "bad"]) == (1, 1)
    assert (found["availability", "good"], found["availability", "bad"]) == (2, 0)
    assert found["e2e", "good"] + found["e2e", "bad"] == 2
    assert sample(page, "sidecar_slo_target_seconds", slo="ttft") == 0.5


async def test_what_the_caller_asked_for_wrongly_is_no_miss_of_ours(sidecar: Sidecar, get: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await sidecar.unary("ModelInfer", ids_request("u", ids=(1,) * 40, output=30), wire.InferResponse)
    _, page, _ = await get("/metrics")
    assert sample(page, "sidecar_slo_events_total", slo="availability", verdict="bad") == 0


async def test_a_call_of_the_engine_is_counted_under_its_status(sidecar: Sidecar, triton: FakeTriton, get: Any) -> None:
    await served(sidecar, triton)
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
    (await triton.next()).error("Executor failed process requestId 4")
    with pytest.raises(grpc.aio.AioRpcError):
        await answer
    _, page, _ = await get("/metrics")
    for status in ("OK", "INTERNAL"):
        where = {"rpc_status_code": status, "server_address": triton.target}
        assert sample(page, "rpc_client_call_duration_seconds_count", **where) == 1


async def test_an_offline_request_that_finds_no_slot_is_counted_under_what_held_it(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, slots=1) as sidecar:
        offline = (("x-lane", "offline"),)
        answers = [
            sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=offline) for _ in range(2)
        ]
        first = await triton.next()
        await sidecar.until(lambda: sidecar.driver.scheduler.snapshot().waiting(Lane.OFFLINE) == 1)
        page = sidecar.metrics.render()[0].decode()
        first.tokens(3, final=True)
        (await triton.next()).tokens(3, final=True)
        for answer in answers:
            await answer
    assert sample(page, "sidecar_offline_held_total", reason=Limit.SLOTS) == 1
    assert sample(page, "sidecar_offline_held_total", reason=Limit.WINDOW) == 0


def test_the_rent_is_split_by_who_had_the_slots_and_the_rest_is_idle() -> None:
    engine = EngineEndpoint(name="e0", slots=4, usd_per_hour=3600.0)
    metrics = Metrics((engine,), version="test", config_hash="test")
    metrics.began_s = 0.0
    for lane, slots in ((Lane.ONLINE, 1), (Lane.OFFLINE, 2)):
        metrics.usage["e0", lane].change(slots, 0.0)
    ((model, name, spent),) = metrics.rents()
    total = sum(spent.values())  # a dollar per second since the clock began
    assert (model, name) == ("tensorrt_llm", "e0")
    assert {lane: usd / total for lane, usd in spent.items()} == pytest.approx(
        {"online": 0.25, "offline": 0.5, "idle": 0.25}
    )


def test_no_dollar_is_taken_back_when_more_slots_end_than_there_were() -> None:
    """A counter that goes back is a restart for Prometheus, which then counts all of it again."""
    metrics = Metrics((EngineEndpoint(name="e0", slots=1, usd_per_hour=3600.0),), version="test", config_hash="test")
    metrics.began_s = 0.0
    ((_, _, before),) = metrics.rents()
    metrics.usage["e0", Lane.ONLINE].change(3, 0.0)  # those that drain are in use beside those that follow them
    ((_, _, after),) = metrics.rents()
    assert after["idle"] == before["idle"] > 0
    assert after["online"] > before["online"]


async def test_the_sidecar_is_ready_while_an_engine_is_up(sidecar: Sidecar, get: Any) -> None:
    lane = "offline lane: <running>\n"
    assert (await get("/readyz"))[:2] == (200, f"serving\nengine e0 (tensorrt_llm): up\n{lane}")
    sidecar.driver.handle(EngineDown(engine="e0", reason="test"))
    assert (await get("/readyz"))[:2] == (503, f"engine down\nengine e0 (tensorrt_llm): down\n{lane}")
    assert (await get("/healthz"))[0] == 200


async def test_the_status_document_holds_slots_tokens_and_what_other_lanes_add(
    sidecar: Sidecar, triton: FakeTriton, get: Any
) -> None:
    await served(sidecar, triton)
    document = json.loads((await get("/status.json"))[1])
    engine = document["engines"]["e0"]
    assert (engine["slots"], engine["slots_busy"], engine["output_tokens"]["online"]) == (2, 0, 2)
    assert engine["slot_seconds"]["online"] >= 0
    assert document["offline"]["state"] == "<running>"


async def test_a_stopped_offline_lane_is_a_degraded_state(sidecar: Sidecar) -> None:
    for state in ("waiting: no broker answers", "degraded: partition 3: fenced", "stopped: a programming error"):
        parts: dict[str, Callable[[], Any]] = {"offline": partial(dict, state=state)}
        status = Status(sidecar.driver.scheduler.snapshot, sidecar.metrics, "test", parts=parts)
        assert status.document()["state"] == f"degraded: the offline lane is {state}"


class Watched:
    """Who watches an engine that came up just now, and beside which something is wrong."""

    def health(self, name: str) -> EngineProbes | None:
        return EngineProbes(up=True, reason="", since_s=time.monotonic()) if name == "e0" else None

    def faults(self, name: str) -> list[str]:
        return [f"{name} has no text model"]


async def test_the_document_says_what_is_wrong_with_an_engine(sidecar: Sidecar) -> None:
    status = Status(sidecar.driver.scheduler.snapshot, sidecar.metrics, "test", engines=Watched())
    assert status.document()["engines"]["e0"]["faults"] == ["e0 has no text model"]


async def test_readyz_says_of_each_engine_and_partition_what_it_does_why_and_since_when(sidecar: Sidecar) -> None:
    lane = {
        "state": "degraded: 1 of 2 partitions; partition 1: a right is missing",
        "reason": "rights",
        "since_s": 12.2,
        "partitions": [
            {"partition": 0, "state": "running", "reason": "none", "since_s": 99.6},
            {"partition": 1, "state": "waiting: a right is missing", "reason": "rights", "since_s": 12.2},
        ],
    }
    status = Status(
        sidecar.driver.scheduler.snapshot, sidecar.metrics, "test", engines=Watched(), parts={"offline": lambda: lane}
    )
    assert status.health() == (
        True,
        "serving\n"
        "engine e0 (tensorrt_llm): up, since 0 s\n"
        "offline lane: degraded, rights, since 12 s: 1 of 2 partitions; partition 1: a right is missing\n"
        "partition 0: running, since 100 s\n"
        "partition 1: waiting, rights, since 12 s: a right is missing\n",
    )


async def test_the_page_allows_nothing_but_its_own_script_and_escapes_what_it_shows(get: Any) -> None:
    status, page, headers = await get("/")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "items from Kafka: &lt;running&gt;" in page
    assert not re.search(r"(src|href)=", page)


@pytest.mark.parametrize(
    ("slots", "strip"),
    [((1, 2, 1, 4), "Oood...."), ((0, 128, 0, 128), "o" * 32 + "." * 32)],
)
def test_the_slot_strip_has_a_sign_per_slot_or_a_share_of_them(slots: tuple[int, ...], strip: str) -> None:
    keys = ("slots_online", "slots_offline", "slots_draining", "slots_free")
    assert slot_strip({**dict(zip(keys, slots, strict=True)), "slots": sum(slots)}) == strip


def test_label_sets_stay_finite_whatever_callers_send() -> None:
    metrics = Metrics((), version="test", config_hash="test")
    before = metrics.render()[0].count(b"rpc_server_call_duration_seconds_count")
    metrics.served("inference.GRPCInferenceService/ModelInfer", "OK", 0.1)
    metrics.served("inference.GRPCInferenceService/ModelInfer", "OK", 0.2)
    assert metrics.render()[0].count(b"rpc_server_call_duration_seconds_count") == before + 1


async def test_where_a_key_is_asked_for_only_health_is_told_without_one(sidecar: Sidecar) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    status = Status(sidecar.driver.scheduler.snapshot, sidecar.metrics, "test")
    server = await serve_http(address, status, sidecar.metrics, seen_by=lambda sent: sent == "Bearer right")
    found = {}
    async with aiohttp.ClientSession() as session:
        for sent in ("", "Bearer wrong", "Bearer right"):
            for path in ("/", "/metrics", "/status.json", "/healthz", "/readyz", "/other"):
                async with session.get(f"http://{address}{path}", headers={"Authorization": sent}) as answer:
                    found[sent, path] = answer.status
                    if answer.status == 401:
                        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    await server.cleanup()
    for sent in ("", "Bearer wrong"):
        assert [found[sent, path] for path in ("/", "/metrics", "/status.json", "/other")] == [401] * 4
    assert [found["Bearer right", path] for path in ("/", "/metrics", "/status.json", "/other")] == [200, 200, 200, 404]
    assert {status for (_, path), status in found.items() if path in ("/healthz", "/readyz")} == {200}
