"""Feeds odd items and odd gRPC messages, among good ones, to a sidecar before the real Triton and the real Kafka.

Then it counts. Every good one must be answered, and rightly; every odd one must have its status or its dead letter; and
when all is over no slot, task, stream or file may be left, and the process no larger than it was half-way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
from aiokafka import AIOKafkaProducer
from google.protobuf.message import DecodeError

from dev.broker import LocalKafka
from dev.checker import TopicCount, check, is_finished, records
from dev.deployment import sidecar_settings
from dev.figures import write
from dev.interrupt import run_until_told
from dev.mutations import good_line, good_message, odd_message, odd_record
from dev.server import SidecarProcess, serving
from dev.triton import Triton, TritonSettings, running
from sidecar.triton import wire
from sidecar.triton.client import SERVICE, EngineClient, responses

PROMPTS = ("how far is the sea", "the train to the coast", "hello there", "one two three four")
PARTITIONS = 4
SLOTS = 8
GROUP = "fuzz"
RECORD_BYTES_MAX = 2 << 20  # what the requests topic takes; the largest mutated item has 1.7 MB
GOOD_EVERY = 10  # one of ten is good
CALLERS = 12  # that call at a time
STREAM_MESSAGES = 6  # of one caller's stream, at most
RPC_TIMEOUT_S = 60.0  # of one call: what takes longer hangs
SETTLE_S = 60.0  # until nothing is in flight any more
EXAMPLES = 20  # of what is wrong, in the report
UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class FuzzTarget:
    """What is fed, and what Triton itself answers to each good prompt."""

    kafka: LocalKafka
    triton: Triton
    server: SidecarProcess
    texts: dict[str, str]


@dataclass(slots=True)
class Report:
    """What became of one feed. `wrong` holds a line for each thing that should not have been, the first few of them."""

    sent: int = 0
    good: int = 0
    good_answered: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong_count: int = 0
    wrong: list[str] = field(default_factory=list)

    def blame(self, what: str) -> None:
        """One more thing is wrong."""
        self.wrong_count += 1
        if len(self.wrong) < EXAMPLES:
            self.wrong.append(what[:500])

    def figures(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "sent": self.sent,
            "good": self.good,
            "good_answered": self.good_answered,
            "outcomes": dict(sorted(self.outcomes.items())),
            "wrong": self.wrong_count,
            "examples": self.wrong,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What an idle sidecar holds."""

    tasks: int
    files: int
    rss_mib: float


@contextlib.asynccontextmanager
async def deployed(directory: Path) -> AsyncIterator[FuzzTarget]:
    """Broker, Triton and sidecar run, and are gone after the block."""
    async with contextlib.AsyncExitStack() as stack:
        kafka = await stack.enter_async_context(LocalKafka())
        await kafka.create_topics(partitions=PARTITIONS)
        triton_settings = TritonSettings(slots=SLOTS, parameters={"preset": "tiny", "seed": "1"})
        triton = await stack.enter_async_context(running(directory, triton_settings))
        server = await stack.enter_async_context(serving(directory, _settings(kafka, triton)))
        yield FuzzTarget(kafka=kafka, triton=triton, server=server, texts=await _texts(triton))


def _settings(kafka: LocalKafka, triton: Triton) -> dict[str, Any]:
    offline = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "group": GROUP,
        "first_start": "earliest",
        "max_tokens_default": 8,
    }
    soon = {"retry_backoff_s": 0.01}  # an item that fails for good has had its attempts soon
    return sidecar_settings(triton, {}, scheduler=soon, offline=offline)


async def _texts(triton: Triton) -> dict[str, str]:
    """Return what Triton itself answers to each prompt: its responses joined, as the models are decoupled."""
    async with EngineClient(triton.target) as client:
        return {
            prompt: "".join(_text(each) for each in await responses(client.open(), good_message("", prompt)))
            for prompt in PROMPTS
        }


# ---- items -----------------------------------------------------------------------------------------------------------


async def feed_items(deployment: FuzzTarget, *, count: int, seed: int) -> Report:
    """`count` records more are on the requests topic, each has its outcome, and those of the good ones are right."""
    draw, report, kafka = Random(seed), Report(), deployment.kafka
    good: dict[str, str] = {}
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, linger_ms=20, max_request_size=RECORD_BYTES_MAX
    ) as producer:
        for number in range(count):
            partition = number % PARTITIONS
            if number % GOOD_EVERY == 0:
                line = good_line(number, draw.choice(PROMPTS))
                line["custom_id"] = f"good-{seed}-{number}"
                good[line["custom_id"]] = line["body"]["prompt"]
                await producer.send("inference.requests", json.dumps(line).encode(), key=b"good", partition=partition)
            else:
                odd = odd_record(draw, number)
                await producer.send(
                    "inference.requests", odd.value, key=odd.key, partition=partition, headers=list(odd.headers)
                )
        await producer.flush()
    while not await asyncio.to_thread(is_finished, kafka.bootstrap_servers, GROUP):
        deployment.server.check_alive()
    verdict = await asyncio.to_thread(check, kafka.bootstrap_servers, GROUP)
    report.sent, report.good = count, len(good)
    await asyncio.to_thread(_compare_items, deployment, verdict, good, report)
    return report


def _compare_items(deployment: FuzzTarget, verdict: TopicCount, good: dict[str, str], report: Report) -> None:
    report.outcomes["result"] = verdict.results
    report.outcomes |= {f"dead_{reason}": number for reason, number in verdict.dead_reasons.items()}
    for name in ("lost", "duplicated", "foreign"):
        for source in getattr(verdict, name):
            report.blame(f"{name}: {source}")
    if verdict.dead_reasons["failed"]:
        report.blame(f"{verdict.dead_reasons['failed']} items were let through and then failed")
    for message in records(deployment.kafka.bootstrap_servers, "inference.results"):
        result = json.loads(message.value() or b"{}")
        if (prompt := good.pop(result["custom_id"], None)) is None:
            continue
        text = result["response"]["body"]["choices"][0]["text"]
        if text.strip() == deployment.texts[prompt].strip():
            report.good_answered += 1
        else:
            report.blame(f"{result['custom_id']} is {text!r}, not {deployment.texts[prompt]!r}")
    for custom_id in good:
        report.blame(f"{custom_id} has no result")


# ---- messages --------------------------------------------------------------------------------------------------------


class Callers:
    """Callers that send odd and good messages by both methods, `CALLERS` at a time."""

    def __init__(self, deployment: FuzzTarget, channel: grpc.aio.Channel) -> None:
        self.report = Report()
        self._texts = deployment.texts
        self._infer: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        self._stream: Any = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")

    async def feed(self, *, count: int, seed: int) -> None:
        """`count` messages are sent and answered."""
        numbers = iter(range(count))
        async with asyncio.TaskGroup() as tasks:
            for caller in range(CALLERS):
                tasks.create_task(self._call(Random(f"{seed}/{caller}"), numbers), name=f"caller {caller}")
        self.report.sent = count

    async def _call(self, draw: Random, numbers: Iterator[int]) -> None:
        for number in numbers:
            if draw.random() < 0.3:
                others = [each for _, each in zip(range(draw.randrange(STREAM_MESSAGES)), numbers, strict=False)]
                await self._call_stream(draw, [number, *others])
            elif number % GOOD_EVERY == 0:
                await self._call_good(draw, number)
            else:
                await self._call_odd(odd_message(draw, number))

    async def _call_good(self, draw: Random, number: int) -> None:
        self.report.good += 1
        prompt = draw.choice(PROMPTS)
        message = good_message(f"good-{number}", prompt, lane=draw.choice(("", "", "offline")))
        try:
            text = _text(_response(await self._infer(message.SerializeToString(), timeout=RPC_TIMEOUT_S)))
        except grpc.aio.AioRpcError as error:
            self.report.blame(f"good-{number}: {error.code().name}: {error.details()}")
            return
        self._judge(f"good-{number}", text, prompt)

    def _judge(self, name: str, text: str, prompt: str) -> None:
        if text.strip() == self._texts[prompt].strip():
            self.report.good_answered += 1
        else:
            self.report.blame(f"{name} is {text!r}, not {self._texts[prompt]!r}")

    async def _call_odd(self, raw: bytes) -> None:
        try:
            await self._infer(raw, timeout=RPC_TIMEOUT_S)
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
            self._suspect(code, error.details() or "", raw)
        self.report.outcomes[f"unary_{code.name}"] += 1

    def _suspect(self, code: grpc.StatusCode, details: str, raw: bytes) -> None:
        hangs = code is grpc.StatusCode.DEADLINE_EXCEEDED and "Request timeout expired" not in details  # asked for
        if hangs or code is grpc.StatusCode.UNKNOWN:
            self.report.blame(f"{code.name}: {details} for {raw[:200]!r}")

    async def _call_stream(self, draw: Random, numbers: list[int]) -> None:
        """Several messages on one stream; the good ones among them are answered, whatever the others are."""
        prompts: dict[str, str] = {}
        texts: dict[str, str] = {}
        sent: list[bytes] = []
        for number in numbers:
            if number % GOOD_EVERY == 0 or (len(numbers) > 1 and not prompts):
                name = f"good-{number}"
                prompts[name] = draw.choice(PROMPTS)
                sent.append(good_message(name, prompts[name]).SerializeToString())
            elif (raw := odd_message(draw, number)) and _parses(raw):
                sent.append(raw)
        if not sent:
            return
        self.report.good += len(prompts)
        call = self._stream(timeout=RPC_TIMEOUT_S)
        try:
            for raw in sent:
                await call.write(raw)
            await call.done_writing()
            while (raw_answer := await call.read()) is not grpc.aio.EOF:
                answer = wire.StreamResponse.FromString(raw_answer)
                name = answer.infer_response.id
                kind = "error" if answer.error_message else "response"
                self.report.outcomes[f"stream_{kind}"] += 1
                if name in prompts and not answer.error_message:
                    texts[name] = texts.get(name, "") + _text(answer.infer_response)
            code = await call.code()
        except grpc.aio.AioRpcError as error:
            code = error.code()
        self.report.outcomes[f"stream_{code.name}"] += 1
        if code is not grpc.StatusCode.OK:
            details = await call.details()
            self.report.blame(f"a stream of {len(sent)} messages ended with {code.name}: {details}")
        for name, prompt in prompts.items():
            self._judge(name, texts.get(name, ""), prompt)


async def feed_messages(deployment: FuzzTarget, *, count: int, seed: int) -> Report:
    """`count` messages are answered, the good ones among them rightly."""
    async with grpc.aio.insecure_channel(deployment.server.listen, options=UNLIMITED) as channel:
        callers = Callers(deployment, channel)
        await callers.feed(count=count, seed=seed)
        return callers.report


def _parses(raw: bytes) -> bool:
    try:
        wire.InferRequest.FromString(raw)
    except DecodeError:
        return False
    return True


def _response(raw: bytes) -> Any:
    return wire.InferResponse.FromString(raw)


def _text(response: Any) -> str:
    found = wire.output_values(response, "text_output") or ()
    return b"".join(found).decode(errors="replace")


# ---- what is left ----------------------------------------------------------------------------------------------------


async def footprint(server: SidecarProcess, before: Footprint | None = None) -> Footprint:
    """Return what the sidecar holds once nothing is in flight, and no more tasks and files are left than `before`.

    Raises TimeoutError if something stays.
    """
    proc = Path("/proc") / str(server.pid)
    async with asyncio.timeout(SETTLE_S):
        while True:
            status, files = await server.status(), sum(1 for _ in (proc / "fd").iterdir())
            grown = before is not None and (status["tasks"] > before.tasks or files > before.files)
            if _is_idle(status) and not grown:
                break
    memory = next(line for line in (proc / "status").read_text().splitlines() if line.startswith("VmRSS:"))
    return Footprint(tasks=status["tasks"], files=files, rss_mib=round(int(memory.split()[1]) / 1024, 1))


def _is_idle(status: dict[str, Any]) -> bool:
    engines = status["engines"].values()
    held = sum(
        each["slots_busy"] + each["slots_draining"] + each["kv_tokens"] + sum(each["prefill_tokens"].values())
        for each in engines
    )
    return not held and status["in_flight"] == 0 and all(lane["waiting"] == 0 for lane in status["lanes"])


async def run(*, items: int, messages: int, seed: int, keep_logs: Path | None = None) -> dict[str, Any]:
    """The figures of one run: both feeds in two halves, with the footprint after each half."""
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        async with contextlib.AsyncExitStack() as stack:
            if keep_logs is not None:
                stack.callback(_copy_logs, Path(directory), keep_logs)
            deployment = await stack.enter_async_context(deployed(Path(directory)))
            feeds: dict[str, list[Report]] = {"items": [], "messages": []}
            left: list[Footprint] = []
            for half in (0, 1):
                feeds["items"].append(await feed_items(deployment, count=items // 2, seed=2 * seed + half))
                feeds["messages"].append(await feed_messages(deployment, count=messages // 2, seed=2 * seed + half))
                left.append(await footprint(deployment.server, left[0] if left else None))
            log = deployment.server.log.read_text(errors="replace")
            await deployment.server.drain()
    return {
        **{name: [report.figures() for report in reports] for name, reports in feeds.items()},
        "left": {name: [getattr(each, name) for each in left] for name in ("tasks", "files", "rss_mib")},
        "log": {"lines": log.count("\n"), "tracebacks": log.count("Traceback")},
        "seed": seed,
        "seconds": round(time.monotonic() - begun_s, 1),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _copy_logs(directory: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for log in directory.glob("*.log"):
        shutil.copy(log, target)


def main() -> int:
    """The command line; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--items", type=int, default=20_000, help="records, one of ten good (%(default)s)")
    parser.add_argument("--messages", type=int, default=20_000, help="gRPC messages, likewise (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="the figures; - is standard output")
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="copy the logs of sidecar and Triton there")
    options = parser.parse_args()
    figures = run_until_told(run(**{name: value for name, value in vars(options).items() if name != "json"}))
    write(figures, options.json)
    reports = [*figures["items"], *figures["messages"]]
    return int(any(each["wrong"] for each in reports) or figures["log"]["tracebacks"] > 0)


if __name__ == "__main__":
    sys.exit(main())
