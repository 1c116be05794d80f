"""`sidecar submit`: the lines of a file become items on the requests topic."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from sidecar.core.errors import SidecarError
from sidecar.edge.kafka_settings import OfflineSettings, client_options

IN_FLIGHT_MAX = 2000
PREFIX_CHARS = 256  # prompts that begin alike get one key, so that they meet on one partition and reuse one KV prefix


class SubmitError(SidecarError):
    """A line is not an item; nothing of the file was sent."""


def read_lines(path: Path) -> list[bytes]:
    """The non-empty lines of a JSONL file. Raises SubmitError for one that is not a JSON object, with its number."""
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise SubmitError(f"cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if line and not isinstance(_parsed(line), dict):
            raise SubmitError(f"{path}:{number}: not a JSON object: {line[:60]!r}")
    return [line for line in lines if line]


def prefix_key(line: bytes) -> bytes:
    """A key that is equal for prompts that begin alike."""
    fields: Any = _parsed(line)
    body = fields.get("body", fields)
    prompt = body.get("prompt") or body.get("input_ids") or body.get("messages") or ""
    start = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return hashlib.blake2b(start[:PREFIX_CHARS].encode(), digest_size=8).hexdigest().encode()


async def submit(settings: OfflineSettings, values: Iterable[bytes], headers: dict[str, str]) -> int:
    """All values are on the requests topic, acknowledged by every replica; how many. Raises KafkaError."""
    producer = AIOKafkaProducer(
        **client_options(settings),
        enable_idempotence=True,
        max_request_size=settings.message_bytes_max,
        compression_type=None if settings.compression == "none" else settings.compression,
    )
    encoded = [(name, text.encode()) for name, text in headers.items()]
    try:
        await producer.start()
        count = 0
        for batch in _batches(values, IN_FLIGHT_MAX):
            sends = [
                await producer.send(settings.requests_topic, value, key=prefix_key(value), headers=encoded)
                for value in batch
            ]
            await asyncio.gather(*sends)
            count += len(batch)
        return count
    finally:
        await producer.stop()


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _batches(values: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for value in values:
        batch.append(value)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
