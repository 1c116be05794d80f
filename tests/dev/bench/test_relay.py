"""The relay's bench: a source that streams what it is asked for, the least relay, and the comparison of two."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from dev.bench.relay import Round, bare_relay, cpu_s, one_stream, report, settings, source_handlers
from sidecar.triton.client import CHANNEL_OPTIONS, SERVICE


@asynccontextmanager
async def served(handlers: dict[str, Any]) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server with these handlers."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
            yield channel
    finally:
        await server.stop(None)


async def test_the_source_streams_as_many_tokens_as_it_is_asked_for_directly_and_through_the_least_relay() -> None:
    async with served(source_handlers()) as source:
        relay: dict[str, Any] = {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(bare_relay(source))}
        async with served(relay) as relayed:
            for channel in (source, relayed):
                assert await one_stream(channel, 3) > 0


async def test_a_stream_that_is_cut_short_is_no_measurement() -> None:
    async def short(requests: AsyncIterator[bytes], context: Any) -> None:
        await anext(requests)
        await context.write(b"")

    async with served({"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(short)}) as channel:
        with pytest.raises(RuntimeError, match="1 responses instead of 5"):
            await one_stream(channel, 5)


def test_the_report_sets_our_median_beside_that_of_the_bare_relay() -> None:
    rounds = {
        "bare": [Round(cpu_us_per_token=each, cpu_us_per_request=100.0, ttft_ms=[1.0, 2.0]) for each in (10.0, 20.0)],
        "sidecar": [
            Round(cpu_us_per_token=each, cpu_us_per_request=300.0, ttft_ms=[1.5, 4.0]) for each in (20.0, 60.0)
        ],
    }
    found = report(rounds, argparse.Namespace(streams=2, tokens=9, rounds=2))
    assert found["ratio"] == {"cpu": 2.5, "cpu_rounds": [2.0, 3.0]}
    assert (found["bare"]["cpu_us_per_token"], found["sidecar"]["cpu_us_per_token"]) == (15.0, 40.0)
    assert found["added_ttft_ms"] == {"p50": 2.0, "p99": 2.0}


def test_the_sidecar_of_the_bench_has_a_slot_for_each_stream() -> None:
    found = settings(source_port=1, streams=7, listen=2, http=3)
    assert found["engines"][0]["slots"] == 7
    assert (found["listen"], found["http"]) == ("127.0.0.1:2", "127.0.0.1:3")


def test_processor_time_grows_with_work() -> None:
    before_s = cpu_s(os.getpid())
    while cpu_s(os.getpid()) == before_s:
        sum(range(10_000))
    assert cpu_s(os.getpid()) > before_s
