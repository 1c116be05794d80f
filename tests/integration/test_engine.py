"""The engine model in the real Triton: hundreds of cancelled requests, errors beside neighbours, several engines."""

from __future__ import annotations

import asyncio
import re
import shutil
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio

from dev.triton import ROOT, Triton, TritonSettings, running
from sidecar.driver.generation import add_word_list
from sidecar.errors import EngineError
from sidecar.triton import wire
from sidecar.triton.client import EngineClient, responses, stop_request, token_request

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
PROMPT = (3, 300, 301, 302, 1)  # the offline marker, some words, the end-of-prompt marker
TOO_LONG = PROMPT[:1] * 2048  # one more than the engine takes
CANCELLED = 300  # ten thousand pass too, and take minutes
AT_ONCE = 48


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with two engine models, as fast as they go; the second hardly ever looks for cancellations."""
    repository = tmp_path_factory.mktemp("repository") / "models"
    shutil.copytree(ROOT / "model_repository", repository)
    second = repository / "engine_python/second"
    shutil.copytree(repository / "engine_python/tensorrt_llm", second)
    config = (second / "config.pbtxt").read_text()
    config = config.replace('name: "tensorrt_llm"', 'name: "second"').replace(
        'string_value: "small"', 'string_value: "tiny"'
    )
    config = re.sub(r'(key: "cancellation_check_period_ms" value: { string_value: )"\d+"', r'\1"4000"', config)
    (second / "config.pbtxt").write_text(config)
    settings = TritonSettings(repository=repository, slots=32, parameters={"preset": "tiny"})
    async with running(tmp_path_factory.mktemp("triton"), settings) as server:
        yield server


def streamed(id_: str, output_tokens: int, ids: tuple[int, ...] = PROMPT, model: str = "tensorrt_llm") -> Any:
    request = token_request(model, ids, output_tokens, id_)
    wire.add_tensor(request, "streaming", "BOOL", (True,), (1, 1))
    return request


class RefusedError(Exception):
    """The engine answered a request with an error."""


async def read(call: Any, request: Any) -> AsyncIterator[Any]:
    """The responses to `request` on a fresh stream, up to the final one or the first error."""
    request.parameters[wire.EMPTY_FINAL].bool_param = True
    await call.write(request)
    await call.done_writing()
    try:
        async for response in call:
            if response.error_message:
                raise RefusedError(response.error_message)
            yield response.infer_response
    except grpc.aio.AioRpcError as error:
        raise RefusedError(error.details()) from None


async def answer(client: EngineClient, request: Any) -> list[int]:
    """All ids of one stream."""
    found: list[int] = []
    async for response in read(client.open(), request):
        found.extend(wire.output_values(response, "output_ids") or ())
    return found


def gauge(triton: Triton, family: str, label: str, model: str = "tensorrt_llm") -> float:
    text = urllib.request.urlopen(triton.metrics_url).read().decode()
    for line in text.splitlines():
        if line.startswith(family) and f'"{label}"' in line and f'model="{model}"' in line:
            return float(line.rsplit(" ", 1)[1])
    raise KeyError(family)


def stub_of(triton: Triton, model: str) -> Path:
    """/proc of the stub process that runs `model`."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\t(\d+)", (path / "status").read_text(), re.MULTILINE)
            words = (path / "cmdline").read_bytes()
        except OSError:  # it ended while we looked
            continue
        if parent and int(parent[1]) == triton.pid and f"/{model}/".encode() in words:
            return path
    raise LookupError(model)


def held(process: Path) -> tuple[int, int]:
    """Threads and file descriptors of a process."""
    return len(list((process / "task").iterdir())), len(list((process / "fd").iterdir()))


async def test_hundreds_of_cancelled_requests_leave_no_block_thread_or_descriptor(triton: Triton) -> None:
    random, process = Random(7), stub_of(triton, "tensorrt_llm")
    numbers = iter(range(CANCELLED))
    async with EngineClient(triton.target) as client:
        await answer(client, streamed("before", 4))
        before = held(process)

        async def cancel_one(number: int) -> None:
            ids = (3, 300 + number % 900, 301, 1)
            call = client.open()
            reader = read(call, streamed(f"c{number}", 900, ids))
            for _ in range(random.randrange(3)):
                await anext(reader)
            if number % 2:
                await client.stop("tensorrt_llm", f"c{number}", 30.0)
                async for _ in reader:
                    pass  # to its final response
            call.cancel()

        async def worker() -> None:
            for number in numbers:
                await cancel_one(number)

        async with asyncio.timeout(900), asyncio.TaskGroup() as workers:
            for _ in range(AT_ONCE):
                workers.create_task(worker())
        async with asyncio.timeout(30):  # the last cancelled ones are let go at the next check
            while (
                gauge(triton, "nv_trt_llm_request_metrics", "active") > 1
                or gauge(triton, "nv_trt_llm_kv_cache_block_metrics", "used")
                > 2  # of the request that moves the gauges
            ):
                await answer(client, streamed("settle", 40))
    after = held(process)
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 2
    assert triton.restarts == 0


async def test_the_error_of_one_request_does_not_touch_its_neighbours(triton: Triton) -> None:
    async with EngineClient(triton.target) as client:
        alone = await answer(client, streamed("alone", 60))
        wrong = streamed("wrong", 60)
        wire.add_tensor(wrong, "beam_width", "INT32", (4,), (1, 1))
        neighbour = asyncio.create_task(answer(client, streamed("neighbour", 60)))
        with pytest.raises(RefusedError, match="beam_width"):
            await answer(client, wrong)
        with pytest.raises(RefusedError, match=r"prompt length \(2048\) exceeds .* \(2047\)"):
            await answer(client, streamed("long", 1, ids=TOO_LONG))
        assert await neighbour == alone


async def test_a_stop_is_answered_without_outputs_and_ends_the_stream_of_its_id(triton: Triton) -> None:
    async with EngineClient(triton.target) as client:
        reader = read(client.open(), streamed("stop-me", 1500))
        await anext(reader)
        answers = [each async for each in read(client.open(), stop_request("tensorrt_llm", "stop-me"))]
        assert [(len(each.outputs), wire.is_final(each)) for each in answers] == [(0, True)]
        last = [each async for each in reader][-1]
        assert wire.is_final(last)
        with pytest.raises(RefusedError, match="needs the id"):
            await answer(client, stop_request("tensorrt_llm", ""))


async def test_a_stop_does_not_wait_for_the_check_of_cancellations(triton: Triton) -> None:
    async with EngineClient(triton.target) as client:
        reader = read(client.open(), streamed("stop-me", 1500, model="second"))
        await anext(reader)
        await client.stop("second", "stop-me", 30.0)
        assert len([each async for each in reader]) < 1400


async def test_stop_words_and_perf_metrics_through_the_wire(triton: Triton) -> None:
    async with EngineClient(triton.target) as client:
        ids = await answer(client, streamed("free", 40))
        request = streamed("words", 40)
        add_word_list(request, "stop_words_list", [ids[10:12]])
        wire.add_tensor(request, "return_perf_metrics", "BOOL", (True,), (1, 1))
        (*_, last) = [each async for each in read(client.open(), request)]
        values = {name: wire.output_values(last, name) for name in ("kv_cache_reused_blocks", "output_ids")}
        assert values["output_ids"] == (ids[11],)
        times = [
            (wire.output_values(last, f"{name}_time_ns") or (0,))[0]
            for name in ("arrival", "first_scheduled", "first_token", "last_token")
        ]
        assert times == sorted(times)
        assert np.all(np.array(times) > 0)


async def test_the_ensemble_streams_text_stops_at_words_and_is_stopped_by_its_own_id(triton: Triton) -> None:
    async with EngineClient(triton.target) as client:
        text = [_text(each) async for each in read(client.open(), in_words("t1", 60))]
        assert len(text) == 60
        word = next(each for each in text[5:] if each.startswith(" "))
        stopped = [_text(each) async for each in read(client.open(), in_words("t2", 60, word))]
        assert stopped == text[: text.index(word) + 1]
        reader = read(client.open(), in_words("t3", 1500))
        await anext(reader)
        await client.stop("tensorrt_llm", "t3", 5.0)
        assert len([each async for each in reader]) < 1499


def in_words(id_: str, output_tokens: int, *stop_words: str) -> Any:
    request = wire.InferRequest(model_name="ensemble", id=id_)
    wire.add_tensor(request, "text_input", "BYTES", (b"<|offline|>Describe the river",), (1, 1))
    wire.add_tensor(request, "max_tokens", "INT32", (output_tokens,), (1, 1))
    wire.add_tensor(request, "stream", "BOOL", (True,), (1, 1))
    wire.add_tensor(request, "end_id", "INT32", (-1,), (1, 1))  # no end but the length and the words
    if stop_words:
        wire.add_tensor(request, "stop_words", "BYTES", [word.encode() for word in stop_words], (1, len(stop_words)))
    return request


def _text(response: Any) -> str:
    (value,) = wire.output_values(response, "text_output") or (b"",)
    return str(value, "utf-8")


async def test_two_engines_in_one_server_run_beside_each_other(triton: Triton) -> None:
    async with EngineClient(triton.target) as client:
        first, second = await asyncio.gather(
            answer(client, streamed("same-id", 100)), answer(client, streamed("same-id", 100, model="second"))
        )
        assert first == second  # the same seed
        assert len(first) == 100
        async with asyncio.timeout(30):  # the gauges follow at the next stats check
            while gauge(triton, "nv_trt_llm_request_metrics", "max", "second") != 8:
                await answer(client, streamed("again", 10, model="second"))


async def test_two_servers_run_beside_each_other(triton: Triton, tmp_path: Path) -> None:
    settings = TritonSettings(slots=2, parameters={"preset": "tiny", "seed": "5"})
    async with (
        running(tmp_path, settings) as other,
        EngineClient(triton.target) as client,
        EngineClient(other.target) as other_client,
    ):
        one, two = await asyncio.gather(answer(client, streamed("a", 50)), answer(other_client, streamed("a", 50)))
        assert (len(one), len(two)) == (50, 50)
        assert one != two


async def test_a_models_error_says_its_status_and_what_the_core_refuses_does_not(triton: Triton) -> None:
    async with EngineClient(triton.target) as client:
        wrong = streamed("wrong", 4)
        wire.add_tensor(wrong, "beam_width", "INT32", (4,), (1, 1))
        assert await error_of(client, wrong) == grpc.StatusCode.INVALID_ARGUMENT
        assert await error_of(client, streamed("long", 1, ids=TOO_LONG)) == grpc.StatusCode.INVALID_ARGUMENT
        no_text = in_words("bytes", 4)
        no_text.raw_input_contents[0] = wire.pack("BYTES", [b"\xff\xfe"])
        assert await error_of(client, no_text) == grpc.StatusCode.INVALID_ARGUMENT
        odd = streamed("odd", 4)
        wire.add_tensor(odd, "temperature", "FP32", (1.0, 2.0), (1, 2))
        assert await error_of(client, odd) == grpc.StatusCode.INTERNAL  # a text alone: whose fault it is, is not said
        assert await error_of(client, streamed("gone", 4, model="no_such_model")) == grpc.StatusCode.INTERNAL


async def test_a_thousand_errors_beside_answers_leave_the_server_whole(triton: Triton) -> None:
    """Asked for the status of errors, Triton 2.51 dies of these."""

    async def one(client: EngineClient, number: int) -> grpc.StatusCode | int:
        if number % 2:
            return len(await answer(client, streamed(f"n{number}", 4)))
        return await error_of(client, streamed(f"n{number}", 1, ids=TOO_LONG))

    async with EngineClient(triton.target) as client:
        for begin in range(0, 2000, AT_ONCE):
            found = await asyncio.gather(*(one(client, number) for number in range(begin, begin + AT_ONCE)))
            assert found == [grpc.StatusCode.INVALID_ARGUMENT, 4] * (AT_ONCE // 2)
    assert triton.restarts == 0


async def error_of(client: EngineClient, request: Any) -> grpc.StatusCode:
    """The status with which the engine refuses `request`, as the sidecar understands it."""
    with pytest.raises(EngineError) as raised:
        await responses(client.open(), request)
    return raised.value.code
