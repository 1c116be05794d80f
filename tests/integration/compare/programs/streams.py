"""Streams of the sync and of the asyncio client."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from typing import Any

from tritonclient import grpc
from tritonclient.grpc import aio

from tests.integration.compare.programs.seen import (
    by_id,
    either,
    fault,
    ids_inputs,
    long_inputs,
    plain,
    query_inputs,
    text_inputs,
)


class Stream:
    """One sync client with its one stream; answers are read in the order of their coming."""

    def __init__(self, target: str, **options: Any) -> None:
        self.client = grpc.InferenceServerClient(target)
        self.answers: queue.Queue[Any] = queue.Queue()
        self._options = options
        self.start()

    def start(self) -> None:
        """The stream is open."""
        self.client.start_stream(lambda result, error: self.answers.put(either(result, error)), **self._options)

    def next(self) -> Any:
        """The next answer."""
        return self.answers.get(timeout=15)

    def rest(self) -> list[Any]:
        """All answers, once the stream has been closed and has ended."""
        self.client.stop_stream()
        found = []
        while not self.answers.empty():
            found.append(self.answers.get())
        return found

    def close(self) -> None:
        """The connection is gone."""
        self.client.close()


def mixed(target: str, word: str) -> Any:
    """Text, ids and an unscheduled model on one stream, one of them wrong."""
    del word
    stream = Stream(target)
    stream.client.async_stream_infer("ensemble", text_inputs(), request_id="text")
    stream.client.async_stream_infer("tensorrt_llm", ids_inputs(), request_id="ids")
    stream.client.async_stream_infer("preprocessing", query_inputs(), request_id="query")
    stream.client.async_stream_infer("tensorrt_llm", [*ids_inputs(), *query_inputs()[:1]], request_id="wrong")
    found = by_id(stream.rest())
    stream.close()
    return found


def finals(target: str, word: str) -> Any:
    """Empty finals asked for, and the result's view of them."""
    del word
    stream = Stream(target)
    options = {"enable_empty_final_response": True}
    stream.client.async_stream_infer("ensemble", text_inputs(), request_id="text", **options)
    stream.client.async_stream_infer("tensorrt_llm", ids_inputs(), request_id="ids", **options)
    stream.client.async_stream_infer("preprocessing", query_inputs(), request_id="query", **options)
    found = by_id(stream.rest())
    stream.close()
    return found


def options(target: str, word: str) -> Any:
    """Compression, headers, priority, timeout and own parameters."""
    del word
    stream = Stream(target, compression_algorithm="gzip", headers={"x-own": "1"}, stream_timeout=10)
    stream.client.async_stream_infer(
        "ensemble", text_inputs(), request_id="a", priority=1, timeout=9_000_000, parameters={"n": 1, "t": "x"}
    )
    stream.client.async_stream_infer("tensorrt_llm", ids_inputs(), model_version="1", request_id="b")
    found = by_id(stream.rest())
    stream.close()
    return found


def given_up(target: str, word: str) -> Any:
    """The user leaves mid-stream and opens another one."""
    del word
    stream = Stream(target)
    stream.client.async_stream_infer("tensorrt_llm", long_inputs(), request_id="long")
    first = stream.next()
    stream.client.stop_stream(cancel_requests=True)
    last = None
    while not stream.answers.empty():
        last = stream.answers.get()
    stream.start()
    stream.client.async_stream_infer("tensorrt_llm", ids_inputs(), request_id="short")
    found = [first, last if last and "status" in last else None, *stream.rest()]
    stream.close()
    return found


def timed_out(target: str, word: str) -> Any:
    """The stream's own timeout passes."""
    del word
    stream = Stream(target, stream_timeout=0.4)
    stream.client.async_stream_infer("tensorrt_llm", long_inputs(), request_id="long")
    first, each = stream.next(), stream.next()
    while "id" in each:
        each = stream.next()
    stream.close()
    return [first, each]


async def _requests(*requests: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    for each in requests:
        yield each


def asyncio_stream(target: str, word: str) -> Any:
    """The asyncio client's stream_infer."""
    del word
    asked: list[dict[str, Any]] = [
        {"model_name": "ensemble", "inputs": text_inputs(), "request_id": "text"},
        {"model_name": "tensorrt_llm", "inputs": ids_inputs(), "request_id": "ids", "parameters": {"n": 1}},
        {"model_name": "no-such", "inputs": ids_inputs(), "request_id": "wrong"},
        {"model_name": "preprocessing", "inputs": query_inputs(), "request_id": "query"},
    ]

    async def run() -> Any:
        async with aio.InferenceServerClient(target) as client:
            answers = client.stream_infer(_requests(*asked), headers={"x-own": "1"})
            return by_id([either(found, failure) async for found, failure in answers])

    return asyncio.run(run())


def asyncio_cancel(target: str, word: str) -> Any:
    """A stream cancelled by the asyncio client, and the next one."""
    del word

    async def run() -> Any:
        async with aio.InferenceServerClient(target) as client:
            long = {"model_name": "tensorrt_llm", "inputs": long_inputs(), "request_id": "long"}
            answers = client.stream_infer(_requests(long))
            seen = []
            try:
                async for found, failure in answers:
                    seen.append(either(found, failure))
                    answers.cancel()
                    break
                async for _ in answers:
                    pass
            except asyncio.CancelledError:
                seen.append("cancelled")
            except Exception as failure:
                seen.append(fault(failure))
            short = {"model_name": "tensorrt_llm", "inputs": ids_inputs(), "request_id": "short"}
            return [*seen, *[plain(found) async for found, _ in client.stream_infer(_requests(short))]]

    return asyncio.run(run())


PROGRAMS = {
    "stream of four": mixed,
    "stream with empty finals": finals,
    "stream with options": options,
    "stream given up and begun again": given_up,
    "stream with a timeout": timed_out,
    "asyncio stream": asyncio_stream,
    "asyncio stream cancelled": asyncio_cancel,
}
