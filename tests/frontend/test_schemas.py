"""The models' descriptions: what they refuse, in Triton's words, and how long each is believed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from tritonclient.grpc import model_config_pb2

from sidecar.core.events import EngineDown
from sidecar.core.settings import SchedulerSettings
from sidecar.errors import BadRequestError, EngineError
from sidecar.frontend import passthrough
from sidecar.frontend.caller_request import CallerRequest, parse
from sidecar.frontend.schemas import AGE_MAX_S, FRESH_S, RETRY_S, InputRule, ModelSchema, Schemas
from sidecar.triton import wire
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request, status_of

OPEN = grpc.StatusCode.UNAVAILABLE


def schema(batch_max: int = 8, *, optional: bool = True) -> ModelSchema:
    """ids [-1] and n [1] are required; w [2, -1] and s (text) may be optional."""
    config = model_config_pb2.ModelConfig(name="m", max_batch_size=batch_max)
    for name, datatype, shape, may_lack in (
        ("ids", "TYPE_INT32", [-1], False),
        ("n", "TYPE_INT32", [1], False),
        ("w", "TYPE_INT32", [2, -1], optional),
        ("s", "TYPE_STRING", [1], optional),
    ):
        config.input.add(name=name, data_type=model_config_pb2.DataType.Value(datatype), dims=shape, optional=may_lack)
    config.output.add(name="out", data_type=model_config_pb2.TYPE_INT32, dims=[-1])
    return ModelSchema.of(config)


def request_of(**inputs: tuple[str, Sequence[int]]) -> Any:
    """Inputs by name: datatype and shape. Their contents are not looked at here."""
    request = wire.InferRequest(model_name="m", id="r")
    for name, (datatype, shape) in {"ids": ("INT32", (1, 3)), "n": ("INT32", (1, 1)), **inputs}.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def refusal(request: Any, of: ModelSchema | None = None) -> str:
    with pytest.raises(BadRequestError) as raised:
        (of or schema()).check(parse(request))
    return str(raised.value)


def test_what_fits_passes() -> None:
    schema().check(parse(request_of(w=("INT32", (1, 2, 5)), s=("BYTES", (1, 1)))))


def test_unknown_inputs_and_outputs_are_refused_by_name() -> None:
    assert refusal(request_of(x=("INT32", (1, 1)))) == "unexpected inference input 'x' for model 'm'"
    request = request_of()
    request.outputs.add(name="y")
    assert refusal(request) == "unexpected inference output 'y' for model 'm'"


def test_all_that_is_missing_is_named() -> None:
    request = wire.InferRequest(model_name="m", id="r")
    assert refusal(request) == (
        "[request id: r] expected number of inputs between 2 and 4 but got 0 inputs for model 'm'. Got input(s) [], "
        "but missing required input(s) ['ids','n']. Please provide all required input(s)."
    )
    assert refusal(request, schema(optional=False)).startswith("[request id: r] expected 4 inputs but got 0 inputs")


def test_enough_inputs_do_not_make_up_for_one_that_is_missing() -> None:
    request = request_of(w=("INT32", (1, 2, 5)))
    del request.inputs[1]
    assert "missing required input(s) ['n']" in refusal(request)


@pytest.mark.parametrize(("datatype", "shown"), [("FP32", "FP32"), ("INT64", "INT64"), ("NUMBER", "<invalid>")])
def test_another_datatype_is_refused(datatype: str, shown: str) -> None:
    assert refusal(request_of(n=(datatype, (1, 1)))) == (
        f"[request id: r] inference input 'n' data-type is '{shown}', but model 'm' expects 'INT32'"
    )


@pytest.mark.parametrize("shape", [(1, 2), (1,), (1, 1, 1)])
def test_another_shape_is_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    printed = ",".join(map(str, shape))
    text = f"[request id: r] unexpected shape for input 'n' for model 'm'. Expected [-1,1], got [{printed}]. NOTE: "
    assert refusal(request_of(n=("INT32", shape))).startswith(text)


def test_an_input_without_a_shape_is_refused() -> None:
    assert refusal(request_of(n=("INT32", ()))) == (
        "[request id: r] input 'n' has no shape but model requires batch dimension for 'm'"
    )


def test_the_input_whose_batch_differs_from_the_others_is_named() -> None:
    request = request_of(ids=("INT32", (3, 3)), s=("BYTES", (1, 1)))
    assert refusal(request) == "[request id: r] input 'ids' batch size does not match other inputs for 'm'"


@pytest.mark.parametrize(("batch", "bound"), [(9, "<= 8"), (0, ">= 1, not 0,")])
def test_a_batch_that_the_model_does_not_take_is_refused(batch: int, bound: str) -> None:
    request = request_of(ids=("INT32", (batch, 3)), n=("INT32", (batch, 1)))
    assert refusal(request) == f"[request id: r] inference request batch-size must be {bound} for 'm'"


def test_a_model_without_a_batch_dimension_takes_its_shapes_as_they_are() -> None:
    schema(0).check(parse(request_of(ids=("INT32", (7,)), n=("INT32", (1,)))))
    assert "got [1,7]" in refusal(request_of(ids=("INT32", (1, 7)), n=("INT32", (1,))), schema(0))


def test_no_classes_are_made_of_an_output_that_holds_texts() -> None:
    config = model_config_pb2.ModelConfig(name="m")
    config.output.add(name="ids", data_type=model_config_pb2.TYPE_INT32, dims=[-1])
    config.output.add(name="text", data_type=model_config_pb2.TYPE_STRING, dims=[-1])
    request = wire.InferRequest(model_name="m")
    for name in ("ids", "text"):
        request.outputs.add(name=name).parameters["classification"].int64_param = 2
    asking = ModelSchema.of(config)
    asking.check_classes(["ids"])
    with pytest.raises(BadRequestError, match="output 'text' of model 'm' holds texts"):
        asking.check_classes(parse(request).classified)


@pytest.mark.parametrize(
    ("parameters", "beams_max", "excludes_input"),
    [
        ({}, None, False),
        ({"max_beam_width": "4", "exclude_input_in_output": "True"}, 4, True),
        ({"max_beam_width": "${max_beam_width}", "exclude_input_in_output": "${exclude_input_in_output}"}, None, False),
        ({"max_beam_width": "", "exclude_input_in_output": "false"}, None, False),
    ],
)
def test_what_an_engine_was_built_for_is_read_from_its_parameters(
    parameters: dict[str, str], beams_max: int | None, excludes_input: bool
) -> None:
    config = model_config_pb2.ModelConfig(name="m")
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    found = ModelSchema.of(config)
    assert (found.beams_max, found.excludes_input) == (beams_max, excludes_input)


@pytest.mark.parametrize(("versions", "version"), [([], ""), (["1"], "1"), (["9", "10", "2"], "10")])
def test_the_version_is_the_latest_that_is_served(versions: list[str], version: str) -> None:
    assert ModelSchema.of(model_config_pb2.ModelConfig(name="m"), versions).version == version


@pytest.mark.parametrize("asked", ["", "2", "02", "+2", " 2", "2x"])
def test_a_version_is_read_as_triton_reads_it(asked: str) -> None:
    request = wire.InferRequest(model_name="m", model_version=asked)
    ModelSchema.of(model_config_pb2.ModelConfig(name="m"), ["1", "2"]).check(parse(request))
    ModelSchema.of(model_config_pb2.ModelConfig(name="m")).check(parse(request))  # where nobody tells which there are


@pytest.mark.parametrize(
    ("asked", "text", "code"),
    [
        ("7", "Request for unknown model: 'm' version 7 is not found", grpc.StatusCode.NOT_FOUND),
        ("-1", "invalid model version specified '-1' ,", grpc.StatusCode.INVALID_ARGUMENT),
        ("0", "invalid model version specified '0' ,", grpc.StatusCode.INVALID_ARGUMENT),
        ("x", "failed to get model version from specified version string 'x'", grpc.StatusCode.INVALID_ARGUMENT),
        ("9" * 20, "failed to get model version", grpc.StatusCode.INVALID_ARGUMENT),
        ("9" * 5000, "failed to get model version", grpc.StatusCode.INVALID_ARGUMENT),
        ("\N{ARABIC-INDIC DIGIT ONE}", "failed to get model version", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_version_that_there_is_not_is_refused_in_tritons_words(asked: str, text: str, code: grpc.StatusCode) -> None:
    with pytest.raises(BadRequestError) as raised:
        ModelSchema.of(model_config_pb2.ModelConfig(name="m"), ["1", "2"]).check(
            parse(wire.InferRequest(model_name="m", model_version=asked))
        )
    assert str(raised.value).startswith(text)
    assert raised.value.code is code


def taking(*inputs: str) -> ModelSchema:
    rules = {name: InputRule(datatype="INT32", dims=(-1, 1), optional=True) for name in inputs}
    return ModelSchema(model="m", inputs=rules, outputs={})


def request(*inputs: str) -> CallerRequest:
    made = wire.InferRequest(model_name="m")
    for name in inputs:
        wire.add_tensor(made, name, "INT32", (1,), (1, 1))
    return parse(made)


class Engine:
    """Tells what the test says, when the test lets it."""

    def __init__(self) -> None:
        self.tells: ModelSchema | EngineError = taking("a")
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
    engine.tells = taking("a", "b")
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
    settings = SchedulerSettings(window_ms=0, retry_backoff_s=0.001)
    async with running_sidecar({"e0": triton}, own_metadata=dict([triton.key]), scheduler=settings) as sidecar:
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


async def test_a_hung_engine_delays_no_stream_by_more_than_one_look(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton.config_hangs = True
    monkeypatch.setattr(passthrough, "FETCH_TIMEOUT_S", 0.25)
    async with running_sidecar({"e0": triton}) as sidecar:
        call = sidecar.stream()
        async with asyncio.timeout(1.5):  # ten requests, one look of a quarter of a second
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
