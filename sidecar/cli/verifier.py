"""Checks a job's outcomes against its items and its receipt, with another client library and no code of the sidecar.

Everything is read again from the topics, read_committed: each item of the job must have exactly one outcome that names
its partition and offset; a result must have the hash that its header states; a dead letter must be its item, byte for
byte; and counts and digest over all outcomes must be those that the progress topic has, which were written in the
transactions of the outcomes. What is wrong is named by the item's partition and offset.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 30.0
AT_ONCE = 10_000
DIGEST_BYTES = 16
MODULUS = 1 << 128
Source = tuple[int, int]  # partition and offset of an item


class VerifyError(Exception):
    """The topics could not be read, so nothing can be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which job, on which topics, and how the client reaches them."""

    client: Mapping[str, Any]
    tenant: str
    job: str
    group: str
    requests: str
    results: str
    dead_letters: str
    progress: str
    starts: Mapping[str, Mapping[int, int]] = field(default_factory=dict)  # no record of the job stands before these


@dataclass(slots=True)
class Findings:
    """What was found. Faults name (partition, offset) of the requests topic, and say what is wrong there."""

    items: int = 0
    results: int = 0
    dead: int = 0
    open: int = 0  # without an outcome, of a job that is not over
    digest: int = 0
    faults: list[tuple[Source | None, str]] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """True if nothing is wrong."""
        return not self.faults


@dataclass(slots=True)
class _Outcomes:
    """What one item has: how many outcomes, and the hash of what a dead letter holds of it (b"": of all of it is not
    known)."""

    count: int = 0
    dead: bytes = b""


def verify(asked: Asked, *, over: bool = True) -> Findings:
    """Compare all that the topics hold of the job. `over`: each item must have its outcome by now."""
    found = Findings()
    receipt = _receipt(asked)
    outcomes: dict[Source, _Outcomes] = {}
    for topic, group in ((asked.results, "x-source-group"), (asked.dead_letters, "dlq.original.group")):
        for message in _of_job(asked, topic, group):
            _outcome(found, outcomes, message, ok=topic == asked.results)
    for message in _of_job(asked, asked.requests, None):  # last: an item is there before its outcome
        found.items += 1
        source = message.partition(), message.offset()
        item = outcomes.pop(source, _Outcomes())
        if item.count > 1:
            found.faults.append((source, f"{item.count} outcomes"))
        elif not item.count and over:
            found.faults.append((source, "no result and no dead letter"))
        found.open += not item.count and not over
        if item.dead and item.dead != _hash(message.value() or b""):
            found.faults.append((source, "the dead letter is not the item"))
    found.faults += [(source, "an outcome, and no item of the job stands there") for source in outcomes]
    found.faults.sort(key=lambda fault: fault[0] or (-1, -1))
    found.digest %= MODULUS
    if over and receipt is not None:
        _compare(found, receipt)
    return found


def _outcome(found: Findings, outcomes: dict[Source, _Outcomes], message: Any, *, ok: bool) -> None:
    """Take in one result or dead letter."""
    headers = _headers(message)
    prefix = "x-source-" if ok else "dlq.original."
    try:
        source = int(headers[f"{prefix}partition"]), int(headers[f"{prefix}offset"])
    except (KeyError, ValueError):
        where = f"{message.topic()}/{message.partition()}/{message.offset()}"
        found.faults.append((None, f"{where} names no item"))
        return
    value: bytes = message.value() or b""
    found.results += ok
    found.dead += not ok
    text = b"%d/%d/" % source + value
    found.digest += int.from_bytes(hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest(), "big")
    item = outcomes.setdefault(source, _Outcomes())
    item.count += 1
    if ok and headers.get("x-result-hash") != _hash(value).hex().encode():
        found.faults.append((source, "the result is not what was written: its hash is another one"))
    if not ok and "dlq.truncated" not in headers:
        item.dead = _hash(value)


def _compare(found: Findings, receipt: Mapping[str, int]) -> None:
    """Hold what was counted against the receipt."""
    mine = {"done": found.results, "dead": found.dead, "digest": found.digest}
    for name, stated in receipt.items():
        if mine[name] != stated:
            shown = (f"{mine[name]:032x}", f"{stated:032x}") if name == "digest" else (str(mine[name]), str(stated))
            found.faults.append((None, f"{name}: the topics hold {shown[0]}, the receipt says {shown[1]}"))


def _receipt(asked: Asked) -> dict[str, int] | None:
    """Counts and digest as the progress topic has them, summed over partitions; None without such a topic."""
    if not asked.progress:
        return None
    last: dict[bytes, bytes | None] = {}
    for message in _records(asked, asked.progress):
        key = _json(message.key())
        if isinstance(key, list) and key[:2] == [asked.tenant, asked.job]:
            last[message.key()] = message.value()
    told = [each for each in map(_json, last.values()) if isinstance(each, dict)]
    receipt = {name: sum(each.get(name, 0) for each in told) for name in ("done", "dead")}
    if all("digest" in each for each in told):  # an older sidecar told none
        receipt["digest"] = sum(int(each["digest"], 16) for each in told) % MODULUS
    return receipt


def _of_job(asked: Asked, topic: str, group: str | None) -> Iterator[Any]:
    """The records of the job on this topic; `group` is the header that names whose outcome it is."""
    for message in _records(asked, topic):
        headers = {name.lower(): value for name, value in (message.headers() or ())}
        tenant = (headers.get("x-tenant") or b"default").decode(errors="replace")
        job = (headers.get("x-job") or b"").decode(errors="replace")
        ours = group is None or (headers.get(group) or b"").decode(errors="replace") == asked.group
        if (tenant, job) == (asked.tenant, asked.job) and ours:
            yield message


def _records(asked: Asked, topic: str) -> Iterator[Any]:
    """Every committed record of the topic, from where the job began to the ends of now."""
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    options = {"group.id": f"verify.{asked.group}", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    consumer = Consumer({**asked.client, **options, "isolation.level": "read_committed", "enable.partition.eof": True})
    try:
        metadata = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
        if metadata.error is not None:
            raise VerifyError(f"{topic}: {metadata.error}")
        left, starts = set(), []
        for number in metadata.partitions:
            begin, end = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=TIMEOUT_S)
            start = max(begin, asked.starts.get(topic, {}).get(number, 0))
            if start < end:
                left.add(number)
                starts.append(TopicPartition(topic, number, start))
        consumer.assign(starts)
        yield from _read(consumer, topic, left)
    except KafkaException as error:
        raise VerifyError(f"{topic}: {error}") from None
    finally:
        consumer.close()


def _read(consumer: Any, topic: str, left: set[int]) -> Iterator[Any]:
    from confluent_kafka import KafkaError

    until_s = time.monotonic() + TIMEOUT_S
    while left:
        messages = consumer.consume(AT_ONCE, timeout=0.1)
        if messages:
            until_s = time.monotonic() + TIMEOUT_S
        elif time.monotonic() > until_s:
            raise VerifyError(f"{topic}: nothing came for {TIMEOUT_S:.0f} s; partitions {sorted(left)} are not read")
        for message in messages:
            error = message.error()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                left.discard(message.partition())
            elif not error.retriable():
                raise VerifyError(f"{topic}: {error}")


def _headers(message: Any) -> dict[str, bytes]:
    """The last header of each name."""
    return {name: value or b"" for name, value in (message.headers() or ())}


def _hash(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=DIGEST_BYTES).digest()


def _json(text: bytes | None) -> Any:
    try:
        return json.loads(text or b"null")
    except ValueError:
        return None
