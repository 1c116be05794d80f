"""The faults of the chaos harness: each breaks one thing around the lane, and leaves it mended."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import string
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from dev.broker import LocalKafka
from dev.chaos_sidecars import ChaosSidecar
from dev.endtxn_proxy import ProxyFaults

REQUESTS, RESULTS, DEAD_LETTERS = "inference.requests", "inference.results", "inference.requests.dlq"
USER = "sidecar"  # what the sidecars are called, so that rights can be taken from them alone
SESSION_TIMEOUT_S = 3.0  # short, so that a takeover takes seconds; heartbeats every half second
SIGSTOP_S = 6.5  # longer than the session: the others take over, and then the sleeper wakes
REQUEST_TIMEOUT_S = 1.5  # a batch without a leader expires after it
PARTITIONS_MAX = 10
LONG = 60_000  # characters that do not compress, as a prompt and so as a result
SHORT_LIMIT = 20_000  # of a topic's batches, for a while
RIGHTS = (
    (ResourceType.TOPIC, RESULTS, AclOperation.WRITE),
    (ResourceType.TOPIC, REQUESTS, AclOperation.READ),
    (ResourceType.GROUP, "chaos", AclOperation.READ),
    (ResourceType.TRANSACTIONAL_ID, "sidecar.chaos.", AclOperation.WRITE),
)
ONLY_FAST = ("engine_fails", "zero_tokens")  # that only the engine of the harness can be told to do
GROWING = ("partition_added", "narrow_results")  # bounded by PARTITIONS_MAX


class ChaosFaults:
    """What can be done to a running cluster and its sidecars. `kinds` are all faults by name."""

    def __init__(
        self,
        kafka: LocalKafka,
        proxy: ProxyFaults,
        sidecars: list[ChaosSidecar],
        gone: list[ChaosSidecar],
        guest: Callable[[str], ChaosSidecar],
        *,
        partitions: int,
        directory: Path,
        draw: random.Random,
    ) -> None:
        """`guest` makes one more sidecar with this instance id; `gone` gets those that have left for good."""
        self.partitions = partitions  # of the requests topic
        self._kafka = kafka
        self._proxy = proxy
        self._sidecars = sidecars
        self._gone = gone
        self._guest = guest
        self._directory = directory
        self._random = draw
        self.kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "kill9": self._kill9,
            "sigstop": self._sigstop,
            "broker_term": lambda: self._restart_broker(signal.SIGTERM),
            "broker_kill9": lambda: self._restart_broker(signal.SIGKILL),
            "rebalance": self._rebalance,
            "late_endtxn": self._late_endtxn,
            "leaderless": self._leaderless,
            "rights": self._rights,
            "record_too_large": self._record_too_large,
            "partition_added": lambda: self._add_partition(results_first=True),
            "narrow_results": lambda: self._add_partition(results_first=False),
            "engine_fails": lambda: self._engine("fails"),
            "zero_tokens": self._zero_tokens,
        }

    # -- processes

    async def _kill9(self) -> None:
        victim = self._random.choice(self._sidecars)
        await victim.end(signal.SIGKILL)
        await asyncio.sleep(self._random.choice([0.0, SESSION_TIMEOUT_S + 1]))  # within the session, or after it
        await victim.start()

    async def _sigstop(self) -> None:
        victim = self._random.choice(self._sidecars)
        victim.signal(signal.SIGSTOP)
        await asyncio.sleep(SIGSTOP_S)
        victim.signal(signal.SIGCONT)

    async def _rebalance(self) -> None:
        """A third sidecar comes, works, and goes; without an instance id it leaves the group at once."""
        guest = self._guest(self._random.choice(["", "guest"]))
        self._sidecars.append(guest)
        await guest.start()
        await until(lambda: guest.count("executions") > 0, 15.0)
        await asyncio.sleep(self._random.uniform(0.0, 1.0))
        await guest.end(self._random.choice([signal.SIGTERM, signal.SIGKILL]))
        self._sidecars.remove(guest)
        self._gone.append(guest)

    # -- brokers

    async def _restart_broker(self, how: signal.Signals) -> None:
        index = self._random.randrange(self._kafka.brokers)
        await self._kafka.stop(index, how)
        await asyncio.sleep(self._random.uniform(0.0, 1.0))
        await self._kafka.start(index)
        await self._kafka.wait_ready()

    async def _late_endtxn(self) -> None:
        released = self._proxy.released
        self._proxy.armed = True
        await until(lambda: self._proxy.released > released, 15.0)

    async def _leaderless(self) -> None:
        """For longer than a batch may wait, the results topic has no leader, as far as the sidecars can see."""
        self._proxy.leaderless = RESULTS
        await asyncio.sleep(2.5 * REQUEST_TIMEOUT_S)
        self._proxy.leaderless = ""

    async def _rights(self) -> None:
        """One right is taken away, noticed, and given back."""
        kind, name, operation = self._random.choice(RIGHTS)
        pattern = ResourcePatternType.PREFIXED if name.endswith(".") else ResourcePatternType.LITERAL
        place = (kind, name, pattern, f"User:{USER}", "*", operation, AclPermissionType.DENY)
        admin = AdminClient({"bootstrap.servers": self._kafka.bootstrap_servers, "log_level": 0})
        for each in admin.create_acls([AclBinding(*place)], request_timeout=15).values():
            await asyncio.to_thread(each.result)
        await until(lambda: any("rights" in each.reasons for each in self._sidecars), 8.0)
        await asyncio.sleep(self._random.uniform(0.0, 1.5))
        for each in admin.delete_acls([AclBindingFilter(*place)], request_timeout=15).values():
            await asyncio.to_thread(each.result)

    # -- topics

    async def _record_too_large(self) -> None:
        """The results topic takes only short batches for a while, and some results are long."""
        async with self._admin() as admin:
            await self._limit(admin, SHORT_LIMIT)
            await self._send(["".join(self._random.choices(string.printable, k=LONG)) for _ in range(3)])
            await asyncio.sleep(self._random.uniform(1.0, 3.0))
            await self._limit(admin, 2_097_152)

    async def _limit(self, admin: AIOKafkaAdminClient, bytes_max: int) -> None:
        config = {"max.message.bytes": str(bytes_max), "cleanup.policy": "delete"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, RESULTS, config)])

    async def _add_partition(self, *, results_first: bool) -> None:
        """One more partition; for a moment its results have a place before there are items, or none at all."""
        more = NewPartitions(self.partitions + 1)
        async with self._admin() as admin:
            if not results_first:
                await admin.create_partitions({REQUESTS: more})
                self.partitions += 1
                await until(lambda: any("partition_missing" in each.reasons for each in self._sidecars), 10.0)
            await admin.create_partitions({RESULTS: more, DEAD_LETTERS: more})
            if results_first:
                await admin.create_partitions({REQUESTS: more})
                self.partitions += 1

    # -- the engine

    async def _engine(self, trouble: str) -> None:
        """Every third call of the engine fails, or ends without a token."""
        with self._trouble(trouble):
            await asyncio.sleep(self._random.uniform(1.0, 3.0))

    async def _zero_tokens(self) -> None:
        with self._trouble("empty"):
            await self._send([f"always empty {number}" for number in range(3)])
            await asyncio.sleep(self._random.uniform(1.0, 3.0))

    @contextmanager
    def _trouble(self, name: str) -> Iterator[None]:
        """The workers look for this file before each call."""
        file = self._directory / f"engine-{name}"
        file.touch()
        try:
            yield
        finally:
            file.unlink()

    async def _send(self, prompts: list[str]) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self._kafka.bootstrap_servers, request_timeout_ms=60_000) as to:
            for prompt in prompts:
                value = json.dumps({"id": "odd", "prompt": prompt, "max_tokens": 2 * LONG}).encode()
                await to.send_and_wait(REQUESTS, value, partition=self._random.randrange(4))

    def _admin(self) -> _Admin:
        return _Admin(bootstrap_servers=self._kafka.bootstrap_servers)


class _Admin(AIOKafkaAdminClient):  # type: ignore[misc]  # aiokafka is untyped
    async def __aenter__(self) -> _Admin:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def until(reached: Callable[[], bool], timeout_s: float) -> None:
    """Returns when it is reached, or after the timeout: the figures say what did not come about."""
    deadline_s = time.monotonic() + timeout_s
    while not reached() and time.monotonic() < deadline_s:  # noqa: ASYNC110 - a counter of another process
        await asyncio.sleep(0.1)
