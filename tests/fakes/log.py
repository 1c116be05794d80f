"""Kafka as the offline lane sees it: partitions, epochs, atomic commits, and faults at the worst moments."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from sidecar.core.request import EndReason, Request
from sidecar.offline.instance_fence import Occupant
from sidecar.offline.item import Record
from sidecar.offline.job_progress import JobKey, JobTally, decoded
from sidecar.offline.kafka_errors import FencedError, LogError, PositionLostError, RecordRefusedError
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.offsets import Committed
from sidecar.settings.offline import OfflineSettings
from sidecar.token_call import Generated, TokenCall
from sidecar.triton.chat_template import Messages
from sidecar.triton.tokenizer import Tokens

TOPIC, PROGRESS = "inference.requests", "inference.progress"


class FakeCluster:
    """What outlives a process. `faults` are used up one per commit: None, "before", "after" or "taint"."""

    def __init__(self, items: int = 0, partitions: int = 1) -> None:
        self.records: dict[int, list[Record]] = {number: [] for number in range(partitions)}
        self.committed: dict[int, tuple[int, str]] = {}
        self.epochs: Counter[int] = Counter()
        self.written: list[tuple[int, Outgoing]] = []
        self.faults: deque[str | None] = deque()
        self.down = 0  # how many of the next starts fail
        self.start_error: Exception | None = None  # what each start raises
        self.open_errors: dict[int, Exception] = {}  # what each opening of a partition raises
        self.fetch_error: Exception | None = None
        self.ends_error: Exception | None = None
        self.limits: dict[str, int] = {}  # the longest record that a topic takes
        self.known_limits = False  # an opening is told `limits`
        self.refuses: Callable[[Outgoing], bool] = lambda _: False  # for another reason than the size
        self.refusals = 0  # of transactions
        self.log_begins: dict[int, int] = {}  # the first offset that a log still holds
        self.occupant: Occupant | None = None  # the member that has our instance id
        self.occupant_lives = False
        self.bumps = 0  # how often a process showed that it has the instance id
        self.group_error = ""  # what the group's background task ran into
        self.silent = False  # the group never assigns anything
        self.deaf = False  # fetches give nothing
        self.seeks_fail: deque[bool] = deque()  # used up one per seek
        self.fetches_fail: deque[bool] = deque()  # used up one per fetch that found something
        self.fetch_steps = 1  # turns of the event loop before a fetch looks at its positions
        self.logs: list[FakeLog] = []
        self.changed = asyncio.Event()  # something happened: look again
        for number in range(items):
            self.produce(json.dumps({"id": str(number), "prompt": f"item {number}", "max_tokens": 4}).encode())

    def produce(self, value: bytes, headers: Sequence[tuple[str, bytes]] = (), skip: int = 0) -> Record:
        """A new record in the emptiest partition, `skip` offsets further on than it need be."""
        number = min(self.records, key=lambda each: len(self.records[each]))
        last = self.records[number][-1].offset if self.records[number] else -1
        record = Record(
            topic=TOPIC,
            partition=number,
            offset=last + 1 + skip,
            timestamp_ms=1_000,
            key=b"key",
            value=value,
            headers=tuple(headers),
        )
        self.records[number].append(record)
        return record

    def make_log(
        self,
        _: OfflineSettings,
        *,
        revoked: Callable[[], Awaitable[None]],
        assigned: Callable[[Collection[int]], None],
    ) -> FakeLog:
        """In place of KafkaLog."""
        self.logs.append(FakeLog(self, revoked, assigned))
        return self.logs[-1]

    def refuse(self, records: Sequence[Outgoing]) -> None:
        """Raises as a broker does: all records of a topic go in one batch, and it refuses whole batches."""
        for topic in dict.fromkeys(record.topic for record in records):
            batch = [at for at, record in enumerate(records) if record.topic == topic]
            long = any(records[at].size > self.limits.get(topic, 1 << 40) for at in batch)
            if long or any(self.refuses(records[at]) for at in batch):
                self.refusals += 1
                raise RecordRefusedError(f"topic {topic} takes no such record", topic, batch, too_large=long)

    def state(self, number: int = 0) -> Committed:
        """What is committed of this partition."""
        return Committed.decode(*self.committed.get(number, (0, "")))

    def end(self, number: int = 0) -> int:
        """One more than the last offset."""
        return self.records[number][-1].offset + 1 if self.records[number] else 0

    def progress(self, number: int = 0) -> list[tuple[bytes, bytes]]:
        """Keys and values on this partition of the progress topic."""
        told = [each for at, each in self.written if at == number and each.topic == PROGRESS]
        return [(each.key or b"", each.value or b"") for each in told]

    def outcomes(self) -> Counter[tuple[int, int]]:
        """How many results and dead letters each (partition, offset) has."""
        found: Counter[tuple[int, int]] = Counter()
        for number, outgoing in self.written:
            if outgoing.topic == PROGRESS:
                continue
            headers = dict(outgoing.headers)
            offset = headers.get("x-source-offset") or headers["dlq.original.offset"]
            found[number, int(offset)] += 1
        return found

    def everything_once(self) -> bool:
        """True if each record has exactly one outcome, and is below its watermark."""
        once = Counter({(record.partition, record.offset): 1 for each in self.records.values() for record in each})
        return self.outcomes() == once and all(self.state(n).watermark >= self.end(n) for n in self.records)


class FakeOpening:
    """One epoch of one partition. A second commit after a tainted one tears, as it would on a broker."""

    def __init__(self, cluster: FakeCluster, number: int) -> None:
        self.tainted = False
        self.state: Committed | None = None
        self.tallies: dict[JobKey, JobTally] = {}
        self.bytes_max: Mapping[str, int] = dict(cluster.limits) if cluster.known_limits else {}
        self._cluster = cluster
        self._number = number
        cluster.epochs[number] += 1
        self._epoch = cluster.epochs[number]

    async def read(self) -> None:
        """The state, read after the epoch was won."""
        await asyncio.sleep(0)
        self.state = self._cluster.state(self._number)
        self.tallies = decoded(self._cluster.progress(self._number))

    async def commit(self, records: Sequence[Outgoing], state: Committed) -> None:
        """All or nothing, and sometimes nobody knows which."""
        await asyncio.sleep(0)
        self._cluster.changed.set()
        if self._epoch != self._cluster.epochs[self._number]:
            raise FencedError("a newer epoch")
        fault = self._cluster.faults.popleft() if self._cluster.faults else None
        if fault == "before":
            raise LogError("nothing was written")
        self._cluster.refuse(records)
        self._cluster.written += [(self._number, record) for record in records]
        if self.tainted:
            raise LogError("a late EndTxn ended this transaction before its offsets were in")
        self._cluster.committed[self._number] = (state.watermark, state.encode())
        if fault == "after":
            raise LogError("everything was written, but the answer is lost")
        self.tainted = fault == "taint"

    async def close(self) -> None:
        """Nothing to close."""


class FakeLog:
    """One consumer. It is assigned everything when it joins, and whatever a test says later."""

    def __init__(
        self,
        cluster: FakeCluster,
        revoked: Callable[[], Awaitable[None]],
        assigned: Callable[[Collection[int]], None],
    ) -> None:
        self.generation = 1
        self.member_id = f"member-{len(cluster.logs)}"
        self.cluster_id = "fake"
        self.revoked = revoked
        self.assigned = assigned
        self._cluster = cluster
        self._positions: dict[int, int] = {}

    async def start(self) -> None:
        """Fails as often as the cluster is down."""
        await asyncio.sleep(0)
        self._cluster.changed.set()
        if self._cluster.start_error is not None:
            raise self._cluster.start_error
        if self._cluster.down:
            self._cluster.down -= 1
            raise LogError("no broker answers")

    def join(self) -> None:
        """Everything is ours."""
        if not self._cluster.silent:
            self.assigned(list(self._cluster.records))

    def check(self) -> None:
        """Fails as the cluster says."""
        if self._cluster.group_error:
            raise LogError(self._cluster.group_error)

    async def stop(self) -> None:
        """Nothing to stop."""

    async def occupant(self) -> Occupant | None:
        await asyncio.sleep(0)
        self._cluster.changed.set()
        return self._cluster.occupant

    async def bump(self) -> bool:
        await asyncio.sleep(0)
        self._cluster.bumps += 1
        return self._cluster.occupant is not None and self._cluster.occupant_lives

    async def open(self, partition: int) -> FakeOpening:
        self._cluster.changed.set()
        if (error := self._cluster.open_errors.get(partition)) is not None:
            raise error
        if self._cluster.log_begins.get(partition, 0) > self._cluster.state(partition).watermark:
            raise PositionLostError("the log begins later", [partition])
        opening = FakeOpening(self._cluster, partition)
        await opening.read()
        return opening

    def seek(self, partition: int, offset: int) -> None:
        if self._cluster.seeks_fail and self._cluster.seeks_fail.popleft():
            raise LogError("not assigned")
        self._positions[partition] = offset

    async def fetch(self, partitions: Iterable[int], records_max: int, wait_s: float) -> list[Record]:
        """The next records of all of them; positions are taken after the wait, as aiokafka does."""
        for _ in range(self._cluster.fetch_steps):
            await asyncio.sleep(0)
        self._cluster.changed.set()
        partitions = list(partitions)
        if self._cluster.fetch_error is not None:
            raise self._cluster.fetch_error
        lost = [n for n in partitions if self._positions[n] < self._cluster.log_begins.get(n, 0)]
        if lost:
            raise PositionLostError("out of range", lost)
        found: list[Record] = []
        for number in () if self._cluster.deaf else partitions:
            at = self._positions[number]
            coming = [record for record in self._cluster.records[number] if record.offset >= at]
            chosen = coming[: records_max - len(found)]
            if chosen:
                self._positions[number] = chosen[-1].offset + 1
            elif not coming:
                self._positions[number] = max(at, self._cluster.end(number))
            found += chosen
        if found and self._cluster.fetches_fail and self._cluster.fetches_fail.popleft():
            raise LogError("one partition cannot be read; what others gave is lost, and the positions are past it")
        if not found:
            await asyncio.sleep(min(wait_s, 0.001))
        return found

    async def position(self, partition: int) -> int:
        return self._positions[partition]

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        if self._cluster.ends_error is not None:
            raise self._cluster.ends_error
        return {number: self._cluster.end(number) for number in partitions}


class WordTokens(Tokens):
    """One id per word; no file is needed."""

    def __init__(self) -> None:
        self.end_id = 2

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        return (*range(10, 10 + len(text.split())), 3)

    def chat_ids(self, messages: Messages, tokens_max: int) -> tuple[int, ...]:
        lines = "\n".join(f"{role}: {content}" for role, content in messages)
        return self.prompt_ids(f"{lines}\nassistant:", tokens_max)

    def encode_words(self, text: str) -> tuple[int, ...]:
        return (5, 6) if text == "STOP" else (4,)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def generated(*ids: int, reason: EndReason = EndReason.END_ID, attempts: int = 1, resumed: int = 0) -> Generated:
    return Generated(
        output_ids=ids or (7, 8, 2),
        reason=reason,
        engine="engine",
        dispatches=1 + resumed,
        resumed=resumed,
        attempts=attempts,
        queue_wait_s=0.5,
        first_token_s=1.0,
        finished_s=3.0,
    )


class FakeDriver:
    """Answers at once, unless a test gives it something else to do."""

    def __init__(self, answer: Callable[[Request, TokenCall], Awaitable[Generated]] | None = None) -> None:
        self.requests: list[Request] = []
        self._answer = answer

    async def generate(self, request: Request, call: TokenCall) -> Generated:
        self.requests.append(request)
        if self._answer is not None:
            return await self._answer(request, call)
        await asyncio.sleep(0)
        return generated()
