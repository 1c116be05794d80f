"""The models' descriptions: fetched once, used on while nobody tells, and not believed when they may be old."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from sidecar.core.events import EngineDown
from sidecar.errors import BadRequestError, EngineError
from sidecar.frontend.schema import InputRule, ModelSchema
from sidecar.frontend.schemas import AGE_MAX_S, FRESH_S, RETRY_S, Schemas
from sidecar.triton import wire
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request, status_of

OPEN = grpc.StatusCode.UNAVAILABLE


def schema(*inputs: str) -> ModelSchema:
    rules = {name: InputRule(datatype="INT32", dims=(-1, 1), optional=True) for name in inputs}
    return ModelSchema(model="m", inputs=rules, outputs={})


def request(*inputs: str) -> wire.InferRequest:
    made = wire.InferRequest(model_name="m")
    for name in inputs:
        wire.add_tensor(made, name, "INT32", (1,), (1, 1))
    return made


class Engine:
    """Tells what the test says, when the test lets it."""

    def __init__(self) -> None:
        self.tells: ModelSchema | EngineError = schema("a")
        self.asked = 0
        self.now_s = 1000.0
        self.up = True
        self.free = asyncio.Event()
        self.free.set()
        self.schemas = Schemas(self.fetch, lambda _model: self.up, lambda: self.now_s)

    async def fetch(self, _model: str) -> ModelSchema:
        self.asked += 1
        await self.free.wait()
        if isinstance(self.tells, EngineError):
            raise self.tells
        return self.tells


async def test_it_is_fetched_once_for_all_who_wait() -> None:
    engine = Engine()
    engine.free.clear()
    checks = [asyncio.ensure_future(engine.schemas.check(request("a"), "m")) for _ in range(10)]
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(*checks)
    assert engine.asked == 1


async def test_who_fetches_may_be_cancelled_and_the_next_one_fetches() -> None:
    engine = Engine()
    engine.free.clear()
    first, second = (asyncio.ensure_future(engine.schemas.check(request("b"), "m")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    engine.free.set()
    with pytest.raises(BadRequestError):
        await second
    assert engine.asked == 2


async def test_a_refusal_is_told_only_after_a_fresh_look() -> None:
    engine = Engine()
    await engine.schemas.check(request("a"), "m")
    engine.tells = schema("a", "b")
    engine.now_s += FRESH_S
    await engine.schemas.check(request("b"), "m")
    assert engine.asked == 2


async def test_requests_that_do_not_fit_cost_one_look_a_second() -> None:
    engine = Engine()
    for _ in range(5):
        with pytest.raises(BadRequestError, match="'b'"):
            await engine.schemas.check(request("b"), "m")
    assert engine.asked == 1


async def test_it_is_fetched_anew_when_it_is_old_or_doubted() -> None:
    engine = Engine()
    await engine.schemas.check(request("a"), "m")
    engine.now_s += AGE_MAX_S
    await engine.schemas.check(request("a"), "m")
    assert engine.asked == 2
    engine.now_s += FRESH_S
    engine.schemas.doubt("m")
    await engine.schemas.check(request("a"), "m")
    assert engine.asked == 3


async def test_while_nobody_tells_the_old_one_is_used_and_nobody_waits_for_the_next_failure() -> None:
    engine = Engine()
    await engine.schemas.check(request("a"), "m")
    engine.tells = EngineError("Deadline Exceeded", OPEN)
    engine.now_s += AGE_MAX_S
    for _ in range(5):
        await engine.schemas.check(request("a"), "m")
        with pytest.raises(BadRequestError):
            await engine.schemas.check(request("b"), "m")
    assert engine.asked == 2
    engine.now_s += RETRY_S
    await engine.schemas.check(request("a"), "m")
    assert engine.asked == 3


async def test_a_slow_look_keeps_nobody_waiting_who_can_use_the_old_one() -> None:
    engine = Engine()
    await engine.schemas.check(request("a"), "m")
    engine.now_s += AGE_MAX_S
    engine.free.clear()
    looking = asyncio.ensure_future(engine.schemas.check(request("a"), "m"))
    await asyncio.sleep(0)
    await engine.schemas.check(request("a"), "m")
    engine.free.set()
    await looking


async def test_no_engine_that_is_down_is_asked() -> None:
    engine = Engine()
    engine.up = False
    await engine.schemas.check(request("b"), "m")
    assert engine.asked == 0


async def test_where_model_config_is_restricted_triton_alone_checks(triton: FakeTriton) -> None:
    triton.key = ("triton-grpc-protocol-admin-key", "secret")
    async with running_sidecar({"e0": triton}) as sidecar:
        key = (triton.key,)
        for _ in range(2):
            answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=key)
            (await triton.next()).tokens(4, final=True)
            assert (await answer).id == "u"
    assert triton.configs == 1


async def test_the_sidecars_own_key_opens_model_config_and_no_caller_gets_it(triton: FakeTriton) -> None:
    triton.key = ("triton-grpc-protocol-admin-key", "secret")
    async with running_sidecar({"e0": triton}, own_metadata=dict([triton.key])) as sidecar:
        bad = ids_request("u")
        wire.add_tensor(bad, "temprature", "FP32", (0.5,), (1, 1))
        code, _, _ = await status_of(sidecar.unary("ModelInfer", bad, wire.InferResponse))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        for lane in ("online", "offline"):
            call = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=(("x-lane", lane),))
            code, details, _ = await status_of(call)
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "This protocol is restricted, expecting header 'triton-grpc-protocol-admin-key'" in details
        offline = (("x-lane", "offline"), triton.key)
        answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=offline)
        (await triton.next()).tokens(1, 2, 3, 4, final=True)
        await answer


async def test_a_model_that_takes_more_after_a_reload_is_believed(sidecar: Sidecar, triton: FakeTriton) -> None:
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
    (await triton.next()).tokens(4, final=True)
    await answer
    triton.extra_inputs.append("lookahead")
    load: Any = sidecar.channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
    await load(b"")
    asking = ids_request("u")
    wire.add_tensor(asking, "lookahead", "INT32", (1,), (1, 1))
    answer = sidecar.unary("ModelInfer", asking, wire.InferResponse)
    (await triton.next()).tokens(4, final=True)
    await answer


async def test_after_the_engine_refuses_what_fitted_it_is_asked_again(sidecar: Sidecar, triton: FakeTriton) -> None:
    clock = iter(range(0, 1000, round(FRESH_S) + 1))
    sidecar.passthrough.schemas._now_s = lambda: float(next(clock))
    for _ in range(2):
        answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
        (await triton.next()).error("unexpected shape for input 'input_ids'")
        await status_of(answer)
    assert triton.configs == 2


async def test_a_hung_engine_delays_no_stream_by_more_than_one_look(triton: FakeTriton) -> None:
    triton.config_hangs = True
    async with running_sidecar({"e0": triton}) as sidecar:
        call = sidecar.stream()
        async with asyncio.timeout(4):  # ten requests, one look of a second
            for number in range(10):
                await call.write(ids_request(str(number), ids=(number + 1,)))
            await sidecar.until(lambda: sidecar.driver.in_flight == 2)
            sidecar.driver.handle(EngineDown(engine="e0", reason="hangs"))
            await sidecar.until(lambda: triton.configs == 1)
        call.cancel()


async def test_with_no_engine_up_all_requests_of_a_stream_are_refused_at_once(triton: FakeTriton) -> None:
    triton.config_hangs = True
    async with running_sidecar({"e0": triton}, up=False) as sidecar:
        call = sidecar.stream()
        async with asyncio.timeout(2):
            for number in range(50):
                await call.write(ids_request(str(number)))
            await call.done_writing()
            found = [each.infer_response.id async for each in call]
    assert found == [str(number) for number in range(50)]
    assert triton.configs == 0
