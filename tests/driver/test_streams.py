"""What an engine answers stays with its dispatch, however odd it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest

from sidecar.core.events import Ended, Event, Failed, Lost
from sidecar.core.request import EndReason
from sidecar.core.settings import SchedulerSettings
from sidecar.token_call import Generated, RequestDeadError
from sidecar.triton import wire
from tests.driver.test_driver import Watcher
from tests.driver.test_generation import END, call, offline
from tests.fakes.engine import FakeEngine, FakeStream, answer_of, running_driver, until

ONCE = SchedulerSettings(window_ms=0, retry_backoff_s=0.0, attempts_max=1)


def odd(change: Callable[[Any], object], *ids: int) -> Any:
    """A response that was right before `change`."""
    answer = answer_of(ids or (4, 5))
    change(answer.infer_response)
    return answer


def shaped(*shape: int) -> Callable[[Any], object]:
    def change(response: Any) -> None:
        del response.outputs[0].shape[:]
        response.outputs[0].shape.extend(shape)

    return change


def typed(datatype: str, values: Any, *shape: int) -> Callable[[Any], object]:
    def change(response: Any) -> None:
        shaped(*shape)(response)
        response.outputs[0].datatype = datatype
        response.raw_output_contents[0] = wire.pack(datatype, values)

    return change


def twice(response: Any) -> None:
    response.outputs.add().CopyFrom(response.outputs[0])
    response.raw_output_contents.append(response.raw_output_contents[0])


def bare(response: Any) -> None:
    del response.raw_output_contents[:]


MALFORMED = {
    "a negative shape": odd(shaped(1, 1, -2)),
    "two negative dimensions": odd(shaped(1, -1, -2)),
    "a shape of more": odd(shaped(1, 1, 3)),
    "a shape of none": odd(shaped()),
    "two sequences": odd(shaped(1, 2, 1)),
    "half a number": odd(lambda response: response.raw_output_contents.__setitem__(0, b"\1\2\3\4\5")),
    "no bytes": odd(bare),
    "fractions": odd(typed("FP32", (4.0, 5.0), 1, 1, 2)),
    "texts": odd(typed("BYTES", (b"4", b"5"), 1, 1, 2)),
    "a type of its own": odd(lambda response: setattr(response.outputs[0], "datatype", "INT7")),
    "negative ids": odd(lambda _: None, -1, 4),
    "ids beyond any vocabulary": odd(typed("INT64", (4, 2**40), 1, 1, 2)),
    "the ids twice": odd(twice),
    "more than was asked for": odd(lambda _: None, *range(3, 12)),
    "bytes that are no message": None,
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_answer_fails_its_dispatch_and_stops_it_there(answer: Any) -> None:
    engine, watcher = FakeEngine(), Watcher()
    async with running_driver(engine, scheduler=ONCE, listeners=(watcher,)) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        stream = await engine.next()
        neighbour = asyncio.ensure_future(driver.generate(offline("k2"), call()))
        other = await engine.next()
        stream.answers.put_nowait(answer)
        stream.tokens(7)  # not its token any more
        with pytest.raises(RequestDeadError, match=r"^INTERNAL: "):
            await task
        assert engine.stopped == [stream.request.id]
        other.tokens(4, END, final=True)
        assert (await neighbour).output_ids == (4, END)
    (failed, _) = watcher.terminal()
    assert isinstance(failed, Failed)
    assert failed.retryable


async def test_a_malformed_final_answer_fails_its_dispatch_without_a_stop() -> None:
    engine = FakeEngine()
    answer = odd(shaped(1, 1, -2))
    answer.infer_response.parameters[wire.FINAL].bool_param = True
    async with running_driver(engine, scheduler=ONCE) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        stream = await engine.next()
        stream.answers.put_nowait(answer)
        stream.close()
        with pytest.raises(RequestDeadError, match="shape"):
            await task
        assert engine.stopped == []


async def test_after_a_malformed_answer_an_engine_that_confirms_no_stop_keeps_its_slot_for_a_while() -> None:
    engine, watcher = FakeEngine(), Watcher()
    engine.confirms_stops = False
    scheduler = SchedulerSettings(window_ms=0, losses_max=1)
    async with running_driver(engine, scheduler=scheduler, listeners=(watcher,), stop_timeout_s=0.01) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        (await engine.next()).answers.put_nowait(MALFORMED["a negative shape"])
        with pytest.raises(RequestDeadError):
            await task
    assert watcher.terminal() == [Lost(request_id="k1")]


async def test_figures_that_are_none_do_not_touch_the_answer() -> None:
    engine, watcher = FakeEngine(), Watcher()
    async with running_driver(engine, listeners=(watcher,)) as driver:
        for number, (datatype, values) in enumerate(
            [("BYTES", (b"many",)), ("FP32", (1.5,)), ("INT32", (-4,)), ("INT32", ()), ("INT32", (3,))]
        ):
            task = asyncio.ensure_future(driver.generate(offline(f"k{number}"), call()))
            stream = await engine.next()
            answer = answer_of((4, END), final=True)
            wire.add_output(answer, "kv_cache_reused_blocks", datatype, values, (1, len(values)))
            stream.answers.put_nowait(answer)
            stream.close()
            assert (await task).output_ids == (4, END)
    reused = [each.reused_tokens for each in watcher.terminal() if isinstance(each, Ended)]
    assert reused == [None, None, None, None, 3 * 32]


async def test_typed_contents_are_read_as_well_as_raw_ones() -> None:
    engine = FakeEngine()
    async with running_driver(engine) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        stream = await engine.next()
        answer = answer_of((4, 5))
        del answer.infer_response.raw_output_contents[:]
        answer.infer_response.outputs[0].contents.int_contents.extend((4, 5))
        stream.answers.put_nowait(answer)
        stream.tokens(END, final=True)
        assert (await task).output_ids == (4, 5, END)


AFTER: dict[str, Callable[[FakeStream], None]] = {
    "tokens": lambda stream: stream.tokens(8, 9),
    "another final response": lambda stream: stream.tokens(8, final=True),
    "an error": lambda stream: stream.error("too late"),
    "nonsense": lambda stream: stream.answers.put_nowait(None),
    "a status": lambda stream: stream.answers.put_nowait(
        grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "late")
    ),
}


@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
async def test_whatever_follows_a_final_response_changes_nothing_and_ends(after: Callable[[FakeStream], None]) -> None:
    engine, watcher = FakeEngine(), Watcher()
    async with running_driver(engine, listeners=(watcher,), stop_timeout_s=0.02) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        stream = await engine.next()
        stream.answers.put_nowait(answer_of((4, END), final=True))
        after(stream)  # and the stream stays open
        assert (await task).output_ids == (4, END)
        await until(stream.cancelled.is_set)
    assert watcher.terminal() == [Ended(request_id="k1", reason=EndReason.END_ID, output_tokens=2)]


async def test_an_error_of_the_engine_frees_the_slot_and_one_of_the_stream_holds_it() -> None:
    engine, watcher = FakeEngine(), Watcher()
    said: list[str] = []

    def status(code: grpc.StatusCode) -> Exception:
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "why")

    async with running_driver(engine, listeners=(watcher,), trouble=said.append) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        for ends in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE):
            (await engine.next()).answers.put_nowait(status(ends))
        (await engine.next()).tokens(END, final=True)
        await task
    kinds: list[Event] = list(watcher.terminal())
    assert kinds[:3] == [
        Failed(request_id="k1", reason="INTERNAL: why", retryable=True),
        Failed(request_id="k1", reason="UNKNOWN: why", retryable=True),
        Lost(request_id="k1"),
    ]
    assert said == ["e0"]


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"])
async def test_a_status_that_blames_the_request_is_not_tried_again(code: str) -> None:
    engine = FakeEngine()
    async with running_driver(engine) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        error = grpc.aio.AioRpcError(grpc.StatusCode[code], grpc.aio.Metadata(), grpc.aio.Metadata(), "yours")
        (await engine.next()).answers.put_nowait(error)
        with pytest.raises(RequestDeadError, match=f"^{code}: yours$"):
            await task


@pytest.mark.parametrize(
    "text", ["unexpected CUDA error 700", "Invalid device pointer", "expected shape", "must be", "model 'x' not found"]
)
async def test_a_text_without_a_status_says_nothing_of_whose_fault_it_is(text: str) -> None:
    engine = FakeEngine()
    async with running_driver(engine) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        (await engine.next()).error(text)
        (await engine.next()).tokens(END, final=True)
        done: Generated = await task
        assert done.attempts == 2
