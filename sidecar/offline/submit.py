"""`sidecar submit`: the lines of a file become items on the requests topic."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from sidecar.core.errors import SidecarError
from sidecar.offline.item import Headers
from sidecar.offline.item_file import Digest, ItemFileError, ItemLines
from sidecar.offline.kafka_errors import translated
from sidecar.offline.kafka_options import client_options
from sidecar.offline.kafka_topics import require_topic
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.wording import counted, verb

IN_FLIGHT_MAX = 2000
PREFIX_CHARS = 256  # prompts that begin alike get one key, so that they meet on one partition and reuse one KV prefix
# … for so many lines: more than an engine has slots, so that the prefix is reused, and few enough that a file with one
# system prompt throughout goes to all partitions.
PREFIX_LINES = 64
LINE = "x-line"  # the header that says where an item stood in its file: results come back in that order
INTERRUPTED = "interrupted"
FLUSH_S = 10.0  # for what is on its way when the sending is broken off


class SubmitError(SidecarError):
    """The sending ended early; the message says what was sent, and how to go on."""


@dataclass(slots=True)
class Sent:
    """How far the sending is. Items are acknowledged by every replica in sync."""

    acknowledged: int = 0
    open_line: int | None = None  # the first line that is not
    beyond: int = 0  # acknowledged ones after it: sent again from there, they are there twice
    error: str = ""  # why it ended early
    begun_s: float = field(default_factory=time.monotonic, compare=False)

    def note(self, line: int, error: BaseException | None) -> None:
        """This line has an answer; lines are noted in their order."""
        if error is not None:
            self.open_line = line if self.open_line is None else self.open_line
            self.error = self.error or self._told(error)
            return
        self.acknowledged += 1
        self.beyond += self.open_line is not None

    def _told(self, error: BaseException) -> str:
        """Return why it ended early, with the last cause: a client often says only that it has given up."""
        return str(translated(error, self.begun_s)) if isinstance(error, KafkaError) else str(error)


def prefix_key(value: bytes, line: int = 0) -> bytes:
    """A key that is equal for prompts that begin alike and stand near each other. What is no item has one, too."""
    try:
        fields: Any = json.loads(value)
        body = fields.get("body", fields)
        prompt = body.get("prompt") or body.get("input_ids") or body.get("messages") or ""
        start = prompt if isinstance(prompt, str) else json.dumps(prompt)
    except (ValueError, AttributeError, RecursionError):
        start = repr(value[:PREFIX_CHARS])
    text = f"{line // PREFIX_LINES}/{start[:PREFIX_CHARS]}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest().encode()


async def submit(settings: OfflineSettings, values: Iterable[bytes], headers: dict[str, str]) -> int:
    """All values are on the requests topic, acknowledged by every replica; how many. Raises SubmitError, KafkaError."""
    sent = Sent()
    encoded = tuple((name, text.encode()) for name, text in headers.items())
    await send(settings, enumerate(values, start=1), encoded, sent, asyncio.Event())
    if sent.error:
        raise SubmitError(sent.error)
    return sent.acknowledged


async def send_file(
    settings: OfflineSettings,
    file: ItemLines,
    digest: str,
    headers: Headers,
    *,
    first_line: int,
    sent: Sent,
    wanted: Callable[[int], bool] | None = None,
) -> None:
    """The file's items from `first_line` on are sent, or `sent` says how many were. Ends early at a SIGINT.

    With `wanted` only the lines for which it holds are sent, and each item says its line.

    Raises SubmitError if the file is another one than the `digest` was made of, LogError if its topic is not there,
    KafkaError if no broker answers.
    """
    stop, read = asyncio.Event(), Digest()

    def lines() -> Iterator[tuple[int, bytes]]:
        for number, value in file.lines():
            read.add(value)
            if number >= first_line and (wanted is None or wanted(number)):
                yield number, value

    loop = asyncio.get_running_loop()
    with contextlib.suppress(RuntimeError):  # a loop in another thread than the main one hears no signals
        loop.add_signal_handler(signal.SIGINT, _stop_at, stop, loop)
    try:
        await send(settings, lines(), headers, sent, stop, lined=wanted is not None)
    except ItemFileError as error:
        raise SubmitError(f"{error}; {told(sent, first_line)}") from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    if not sent.error and read.text != digest:
        raise SubmitError(f"{file.name} changed after it was checked; {told(sent, first_line)}")


def _stop_at(stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    loop.remove_signal_handler(signal.SIGINT)  # a second one ends it the hard way
    stop.set()


def told(sent: Sent, first_line: int) -> str:
    """Return what was sent, and how to go on."""
    if not sent.acknowledged:
        return "no item is acknowledged"
    line = first_line if sent.open_line is None else sent.open_line
    doubled = f" ({sent.beyond} of those {verb(sent.beyond)} after it and will be there twice)" if sent.beyond else ""
    items = f"{counted(sent.acknowledged, 'item')} {verb(sent.acknowledged)}"
    return f"{items} acknowledged; go on with --from {line}{doubled}"


async def send(
    settings: OfflineSettings,
    lines: Iterable[tuple[int, bytes]],
    headers: Headers,
    sent: Sent,
    stop: asyncio.Event,
    *,
    lined: bool = False,
) -> None:
    """The lines are sent, IN_FLIGHT_MAX at a time, until one fails or `stop` is set; `sent` says how far it came.

    `lined`: each item says its line in a header.
    """
    producer = AIOKafkaProducer(
        **client_options(settings),
        enable_idempotence=True,
        max_request_size=settings.message_bytes_max,
        compression_type=None if settings.compression == "none" else settings.compression,
    )
    waiting = iter(lines)
    try:
        await producer.start()
        await require_topic(producer.client, settings.requests_topic)
        while batch := [*islice(waiting, IN_FLIGHT_MAX)]:
            await _send_batch(producer, settings.requests_topic, batch, headers, sent, stop, lined)
            if sent.error:
                return
            if stop.is_set() and (left := next(waiting, None)) is not None:
                sent.open_line, sent.error = left[0], INTERRUPTED
                return
    finally:
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(FLUSH_S):
                await producer.stop()


async def _send_batch(
    producer: AIOKafkaProducer,
    topic: str,
    batch: list[tuple[int, bytes]],
    headers: Headers,
    sent: Sent,
    stop: asyncio.Event,
    lined: bool,
) -> None:
    """Every line of the batch has an answer, or had FLUSH_S for it after `stop`."""
    futures: list[asyncio.Future[Any]] = []
    refused: Exception | None = None
    for number, value in batch:
        try:
            own = [*headers, (LINE, b"%d" % number)] if lined else list(headers)
            futures.append(await producer.send(topic, value, key=prefix_key(value, number), headers=own))
        except KafkaError as error:
            refused = error
            break
    await _answered(futures, stop)
    for (number, _), future in zip(batch, futures, strict=False):
        unknown = None if future.done() else TimeoutError(f"no answer for {FLUSH_S:g} s after the interruption")
        sent.note(number, unknown or future.exception())
    if refused is not None:
        sent.note(batch[len(futures)][0], refused)


async def _answered(futures: list[asyncio.Future[Any]], stop: asyncio.Event) -> None:
    """All have an answer, or it is FLUSH_S after `stop`."""
    if not futures:
        return
    answered = asyncio.ensure_future(asyncio.wait(futures))
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait([answered, stopped], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([answered], timeout=FLUSH_S)
    finally:
        answered.cancel()
        stopped.cancel()
