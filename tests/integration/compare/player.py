"""Plays the steps of a scenario with grpc.aio, and writes down everything that comes: a transcript for each call.

The Go client (go/main.go) does the same with grpc-go and writes the same transcripts.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sidecar.triton.client import SERVICE
from sidecar.triton.errors import STATUS_LOST
from tests.integration.compare.scenario import (
    RUN,
    Ask,
    Await,
    Begin,
    Cancel,
    Close,
    Look,
    Metadata,
    Open,
    Program,
    Region,
    Scenario,
    Send,
    Step,
)

SCENARIO_TIMEOUT_S = 25.0
OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
COMPRESSIONS = {"": None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
TRIES_MAX = 5  # of a scenario whose status gRPC lost
HUNG = "HUNG"  # the status of a call that had not ended in time


@dataclass(slots=True, kw_only=True)
class Transcript:
    """Everything that one call brought its caller."""

    method: str
    messages: list[bytes] = field(default_factory=list)
    status: str = HUNG
    details: str = ""
    initial: list[tuple[str, str]] = field(default_factory=list)
    trailing: list[tuple[str, str]] = field(default_factory=list)
    awaited: int | None = None  # only so many messages count: the caller went away after them


@dataclass(slots=True, kw_only=True)
class Played:
    """What one scenario brought: by call, and what the regions held."""

    calls: dict[str, Transcript] = field(default_factory=dict)
    looks: list[bytes] = field(default_factory=list)
    programs: dict[str, Any] = field(default_factory=dict)


async def play(scenario: Scenario, target: str, run: str) -> Played:
    """The scenario played against `target`; calls that had not ended in time have the status HUNG.

    It is played again where the client lost the status that a server had ended a stream with.
    """
    for _ in range(TRIES_MAX):
        played = await _played(scenario, target, run)
        if not any(each.details == STATUS_LOST for each in played.calls.values()):
            break
    return played


async def _played(scenario: Scenario, target: str, run: str) -> Played:
    player = Player(target, run)
    try:
        async with asyncio.timeout(SCENARIO_TIMEOUT_S):
            for step in scenario.sent(run):
                await player.step(step)
            await player.close_all()
    except TimeoutError:
        pass
    finally:
        await player.leave()
    return player.played


class Player:
    """One scenario against one target."""

    def __init__(self, target: str, run: str) -> None:
        self.played = Played()
        self._target = target
        self._run = run
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._live: dict[str, _Live] = {}
        self._regions: list[Path] = []

    async def step(self, step: Step) -> None:
        """This step is done."""
        match step:
            case Ask():
                await self._ask(step)
            case Open():
                stream: Any = self._channel(step.channel).stream_stream(f"/{SERVICE}/ModelStreamInfer")
                call = stream(**self._options(step.metadata, step.timeout_s, step.compression))
                self._live[step.call] = _Live(call, self._transcript(step.call, "ModelStreamInfer"))
            case Begin():
                begun: Any = self._channel(step.channel).unary_unary(f"/{SERVICE}/{step.method}")
                call = begun(self._told(step.body), **self._options((), step.timeout_s, ""))
                self._live[step.call] = _Live(call, self._transcript(step.call, step.method), unary=True)
            case Send():
                await self._live[step.call].send(self._told(step.body))
            case Await():
                await self._live[step.call].came(step.responses)
            case Close():
                await self._live.pop(step.call).close()
            case Cancel():
                await self._live.pop(step.call).cancel()
            case Region():
                path = _path(self._told_text(step.name))
                self._regions.append(path)
                path.write_bytes(step.content)
            case Look():
                self.played.looks.append(_read(_path(self._told_text(step.name)), step.size))
            case Program():
                raise TypeError("programs are run by the runner, all of one release in one process")

    async def close_all(self) -> None:
        """Every call that is still open has been closed by its caller, and has ended."""
        while self._live:
            await self._live.pop(next(iter(self._live))).close()

    async def leave(self) -> None:
        """Nothing of this scenario is left."""
        for live in self._live.values():
            live.abandon()
        for channel in self._channels.values():
            await channel.close()
        for path in self._regions:
            path.unlink(missing_ok=True)

    async def _ask(self, step: Ask) -> None:
        path = step.method if step.method.startswith("/") else f"/{SERVICE}/{step.method}"
        method: Any = self._channel("").unary_unary(path)
        while True:
            call = method(self._told(step.body), **self._options(step.metadata, step.timeout_s, step.compression))
            transcript = Transcript(method=step.method)
            await _finish(call, transcript)
            if not step.until_status or (transcript.status == "OK") is (step.until_status == "OK"):
                break
        self._transcript(step.call or step.method, step.method, transcript)

    def _transcript(self, name: str, method: str, transcript: Transcript | None = None) -> Transcript:
        calls, number, free = self.played.calls, 1, name
        while free in calls:
            number += 1
            free = f"{name} {number}"
        calls[free] = transcript or Transcript(method=method)
        return calls[free]

    def _channel(self, name: str) -> grpc.aio.Channel:
        if name not in self._channels:
            own = (("grpc.use_local_subchannel_pool", 1),)  # a connection of its own, as another program has
            self._channels[name] = grpc.aio.insecure_channel(self._target, options=OPTIONS + own)
        return self._channels[name]

    def _options(self, metadata: Metadata, timeout_s: float, compression: str) -> Mapping[str, Any]:
        told = tuple((key, self._told_text(value)) for key, value in metadata)
        return {"metadata": told, "timeout": timeout_s, "compression": COMPRESSIONS[compression]}

    def _told(self, body: bytes) -> bytes:
        return body.replace(RUN.encode(), self._run.encode())

    def _told_text(self, text: str) -> str:
        return text.replace(RUN, self._run)


class _Live:
    """A call that has not ended; a task writes down what it brings."""

    def __init__(self, call: Any, transcript: Transcript, *, unary: bool = False) -> None:
        self._call = call
        self._transcript = transcript
        self._unary = unary
        self._came = asyncio.Condition()
        self._awaited = 0
        self._reader = asyncio.create_task(self._read(), name=f"read {transcript.method}")

    async def _read(self) -> None:
        if self._unary:
            await _finish(self._call, self._transcript)
        else:
            with _ended_calls():
                while (message := await self._call.read()) is not grpc.aio.EOF:
                    async with self._came:
                        self._transcript.messages.append(message)
                        self._came.notify_all()
            await _end(self._call, self._transcript)
        async with self._came:
            self._came.notify_all()

    async def send(self, body: bytes) -> None:
        """Written, or the stream had ended: then its status says why."""
        with _ended_calls():
            await self._call.write(body)

    async def came(self, responses: int) -> None:
        """So many messages have come, or the call has ended."""
        self._awaited = responses
        async with self._came:
            await self._came.wait_for(
                lambda: len(self._transcript.messages) >= responses or self._transcript.status != HUNG
            )

    async def close(self) -> None:
        """No more requests follow, and the call has ended."""
        if not self._unary:
            with _ended_calls():
                await self._call.done_writing()
        await asyncio.shield(self._reader)  # cancelled: `abandon` ends the reader
        self._keep_awaited_if_broken_off()

    async def cancel(self) -> None:
        """The caller has gone away, and the call has ended."""
        self._call.cancel()
        await asyncio.shield(self._reader)
        self._transcript.awaited = self._awaited

    def _keep_awaited_if_broken_off(self) -> None:
        """After a deadline the number of responses depends on time."""
        if self._transcript.status == grpc.StatusCode.DEADLINE_EXCEEDED.name:
            self._transcript.awaited = self._awaited

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self._call.cancel()
        self._reader.cancel()


@contextlib.contextmanager
def _ended_calls() -> Iterator[None]:
    """What grpc.aio raises for a call that has ended is no error here: its status is read afterwards."""
    try:
        yield
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass
    except asyncio.CancelledError:  # grpc.aio: also for a call that was cancelled
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise


async def _finish(call: Any, transcript: Transcript) -> None:
    with _ended_calls():
        transcript.messages.append(await call)
    await _end(call, transcript)


async def _end(call: Any, transcript: Transcript) -> None:
    """Metadata first: the status says that nothing follows."""
    with _ended_calls():
        transcript.initial = _pairs(await call.initial_metadata())
    transcript.trailing = _pairs(await call.trailing_metadata())
    transcript.details = await call.details() or ""
    transcript.status = (await call.code()).name


def _pairs(metadata: Sequence[tuple[str, str | bytes]] | None) -> list[tuple[str, str]]:
    return [(key, value if isinstance(value, str) else value.hex()) for key, value in metadata or ()]


def _path(region: str) -> Path:
    return Path("/dev/shm") / region.lstrip("/")


def _read(path: Path, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped:
            return mapped[:]
    finally:
        os.close(descriptor)
