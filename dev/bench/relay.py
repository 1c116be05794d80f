"""What the sidecar adds to a relayed token: its CPU per token and TTFT against a bare grpc.aio relay, in one run.

    scripts/bench relay [--streams N] [--tokens N] [--rounds N] [--json FILE]

A source streams tokens to every stream in the same tick, as an in-flight batch does. The same load goes through a bare
relay (bytes in, bytes out) and through `sidecar serve`, in turns, each a process of its own; the figures are medians
over the rounds, and the ratio is what counts: both saw the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import model_config_pb2, service_pb2

from dev.broker import free_ports
from dev.figures import ran_on, write
from dev.interrupt import run_until_told
from dev.server import serving
from sidecar.settings.limits import LimitSettings
from sidecar.triton import wire
from sidecar.triton.client import CHANNEL_OPTIONS, SERVICE, token_request

SLOTS_MAX = 1024  # that the source claims to have
TICK_S = 0.01  # between the tokens of one stream


PROBES = 50  # requests for one token per round, one after the other: their latency is the TTFT


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One load through one relay."""

    cpu_us_per_token: float
    cpu_us_per_request: float
    ttft_ms: list[float]


async def main(options: argparse.Namespace) -> dict[str, Any]:
    """The figures."""
    async with contextlib.AsyncExitStack() as stack:
        source_port, bare_port, *ports = free_ports(4)
        await stack.enter_async_context(child("source", source_port))
        bare = await stack.enter_async_context(child("bare", bare_port, f"127.0.0.1:{source_port}"))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = await stack.enter_async_context(serving(directory, settings(source_port, options.streams, *ports)))
        found: dict[str, list[Round]] = {"bare": [], "sidecar": []}
        for number in range(options.rounds + 1):
            for name, address, pid in (
                ("bare", f"127.0.0.1:{bare_port}", bare.pid),
                ("sidecar", server.listen, server.pid),
            ):
                each = await one_round(address, pid, options.streams, options.tokens)
                if number:  # the first warms up
                    found[name].append(each)
    return report(found, options)


def report(found: dict[str, list[Round]], options: argparse.Namespace) -> dict[str, Any]:
    """Medians of both, and their ratio and difference."""
    rows: dict[str, Any] = {}
    for name, rounds in found.items():
        ttft_ms = sorted(value for each in rounds for value in each.ttft_ms)
        rows[name] = {
            "cpu_us_per_token": round(statistics.median(each.cpu_us_per_token for each in rounds), 1),
            "cpu_us_per_request": round(statistics.median(each.cpu_us_per_request for each in rounds)),
            "ttft_ms": {
                "p50": round(ttft_ms[len(ttft_ms) // 2], 2),
                "p99": round(ttft_ms[int(len(ttft_ms) * 0.99)], 2),
            },
        }
    pairs = zip(found["sidecar"], found["bare"], strict=True)
    ratios = [ours.cpu_us_per_token / theirs.cpu_us_per_token for ours, theirs in pairs]
    return {
        "streams": options.streams,
        "tokens_per_stream": options.tokens,
        "rounds": options.rounds,
        **rows,
        "ratio": {"cpu": round(statistics.median(ratios), 3), "cpu_rounds": [round(each, 3) for each in ratios]},
        "added_ttft_ms": {
            share: round(rows["sidecar"]["ttft_ms"][share] - rows["bare"]["ttft_ms"][share], 2)
            for share in ("p50", "p99")
        },
        "ran_on": {**ran_on(), "grpc": grpc.__version__},
    }


async def one_round(address: str, pid: int, streams: int, tokens: int) -> Round:
    """All streams run at once to their end, then the probes; what the relay's process used for each."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        before_s = cpu_s(pid)
        await asyncio.gather(*(one_stream(channel, tokens) for _ in range(streams)))
        between_s = cpu_s(pid)
        ttft_ms = [await one_stream(channel, 1) for _ in range(PROBES)]
        request_us = 1e6 * (cpu_s(pid) - between_s) / PROBES
        tokens_us = 1e6 * (between_s - before_s) - streams * request_us
        return Round(
            cpu_us_per_token=tokens_us / (streams * (tokens - 1)), cpu_us_per_request=request_us, ttft_ms=ttft_ms
        )


async def one_stream(channel: grpc.aio.Channel, tokens: int) -> float:
    """Read one stream to its end as bytes; its TTFT in ms."""
    call: Any = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
    begun_s = asyncio.get_running_loop().time()
    first_s, count = 0.0, 0
    await call.write(token_request("tensorrt_llm", (5, 6, 1), tokens, "r").SerializeToString())
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        first_s = first_s or asyncio.get_running_loop().time()
        count += 1
    if count != tokens:
        raise RuntimeError(f"{count} responses instead of {tokens}")
    return 1000 * (first_s - begun_s)


def cpu_s(pid: int) -> float:
    """CPU seconds that the threads of a process have used, to the microsecond (first field of schedstat: ns)."""
    return sum(int(each.read_text().split()[0]) for each in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def settings(source_port: int, streams: int, listen: int, http: int) -> dict[str, Any]:
    """A sidecar in front of the source, with a slot for each stream."""
    engine = {"name": "source", "target": f"127.0.0.1:{source_port}", "slots": streams, "text_model": None}
    return {"listen": f"127.0.0.1:{listen}", "http": f"127.0.0.1:{http}", "engines": [engine]}


# ---- the two other processes ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def child(role: str, port: int, target: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of this module in another role; it says when it is ready, and is gone after the block."""
    command = (sys.executable, "-m", "dev.bench.relay", "--role", role, "--port", str(port), "--target", target)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        if process.stdout is None or not await process.stdout.readline():
            raise RuntimeError(f"the {role} did not start")
        yield process
    finally:
        process.kill()
        await process.wait()


async def play(role: str, port: int, target: str) -> None:
    """Serve as the source or as the bare relay until killed."""
    server = grpc.aio.server(options=LimitSettings().server_options())
    async with contextlib.AsyncExitStack() as stack:
        if role == "source":
            handlers: dict[str, Any] = source_handlers()
        else:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS))
            handlers = {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(bare_relay(channel))}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        print("ready", flush=True)
        await server.wait_for_termination()


def bare_relay(channel: grpc.aio.Channel) -> Any:
    """The least that a relay can do: one upstream stream per caller's stream, bytes in, bytes out."""
    method: Any = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")

    async def handler(requests: AsyncIterator[bytes], context: Any) -> None:
        call = method()
        await call.write(await anext(requests))
        await call.done_writing()
        while (response := await call.read()) is not grpc.aio.EOF:
            await context.write(response)

    return handler


def source_handlers() -> dict[str, Any]:
    """A model `tensorrt_llm` that streams as many tokens as it is asked for: one at once, then one per tick."""

    async def stream(requests: AsyncIterator[Any], context: Any) -> None:
        async for request in requests:
            answer = wire.StreamResponse()
            response = answer.infer_response
            response.model_name, response.model_version, response.id = request.model_name, "1", request.id
            for name, shape in (("output_ids", (1, 1, 1)), ("sequence_length", (1, 1))):
                response.outputs.add(name=name, datatype="INT32", shape=shape)
                response.raw_output_contents.append(wire.pack("INT32", (1,)))
            stop = wire.scalar(request, "stop", False)
            tokens = 1 if stop else wire.scalar(request, "request_output_len", 1)
            loop = asyncio.get_running_loop()
            tick = int(loop.time() / TICK_S)
            for number in range(1, tokens + 1):
                response.parameters[wire.FINAL].bool_param = number == tokens
                if number > 1:
                    tick += 1
                    await asyncio.sleep(tick * TICK_S - loop.time())
                await context.write(answer)

    async def model_config(_raw: bytes, _context: Any) -> bytes:
        answer = service_pb2.ModelConfigResponse()
        answer.config.name, answer.config.max_batch_size = "tensorrt_llm", SLOTS_MAX
        for name, dims in (("input_ids", [-1]), ("input_lengths", [1]), ("request_output_len", [1])):
            answer.config.input.add(name=name, data_type=model_config_pb2.TYPE_INT32, dims=dims)
        return bytes(answer.SerializeToString())

    return {
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
            stream,
            request_deserializer=wire.InferRequest.FromString,
            response_serializer=wire.StreamResponse.SerializeToString,
        ),
        "ModelConfig": grpc.unary_unary_rpc_method_handler(model_config),
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench relay", description="The sidecar against a bare relay.")
    parser.add_argument("--streams", type=int, default=16, help="concurrent streams (16)")
    parser.add_argument("--tokens", type=int, default=400, help="tokens per stream (400)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each (5)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - = standard output")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = parsed()
    if given.role:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(play(given.role, given.port, given.target))
        sys.exit(0)
    write(run_until_told(main(given)), given.json)
