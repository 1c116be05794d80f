"""An offline backlog in the OpenAI Batch format and the short form, from a seed; a few records are bad on purpose."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator

from aiokafka import AIOKafkaProducer

from dev.load import PROMPT_WORDS

OFFLINE_LIKE = "<|offline|>"  # the first token that makes the CPU engine draw a long, offline-like output
BAD_RECORDS = (b"this is not JSON", b'{"id": "no-prompt"}', b"\xff\xfe not UTF-8")


def records(*, items: int, seed: int, stop_word: str) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of `items` records; one in 100 is bad, half declare `stop_word`, none knows its output length."""
    draw = random.Random(seed)
    for number in range(items):
        key = f"item-{number:05}".encode()
        if number % 100 == 99:
            yield key, BAD_RECORDS[number // 100 % len(BAD_RECORDS)]
            continue
        prompt = OFFLINE_LIKE + " ".join(draw.choices(PROMPT_WORDS, k=draw.randint(12, 48)))
        body: dict[str, object] = {
            "model": "tensorrt_llm",
            "prompt": prompt,
            "max_tokens": 1024,
            "temperature": 0.0,  # greedy: with the API's default, and a seed, half of them would run whole
        }
        if number // 4 % 2 == 0:  # not by `number % 4`, which would be by partition
            body["stop"] = [stop_word]
        if number % 2 == 0:
            line: dict[str, object] = {
                "custom_id": key.decode(),
                "method": "POST",
                "url": "/v1/completions",
                "body": body,
            }
        else:
            line = {"id": key.decode(), **body}
        yield key, json.dumps(line).encode()


async def produce(
    bootstrap_servers: str, topic: str, partitions: int, lines: Iterable[tuple[bytes, bytes]]
) -> list[int]:
    """All records (key, value) are on the broker, spread over the partitions; returns how many each partition got."""
    counts = [0] * partitions
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=20) as producer:
        for number, (key, value) in enumerate(lines):
            await producer.send(topic, value, key=key, partition=number % partitions)
            counts[number % partitions] += 1
        await producer.flush()
    return counts
