"""aiokafka's producer and admin client as an opening of a partition sees them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata


class FakeProducer:
    """Notes every call; `failing` names calls that raise, and what."""

    def __init__(self, calls: list[Any], failing: dict[str, Exception], **options: Any) -> None:
        self.options = options
        self.calls = calls
        self.failing = failing
        self.client = SimpleNamespace(send=self._request, bootstrap=None)
        self._txn_manager = SimpleNamespace(_transaction_waiter=None)

    async def _request(self, name: str) -> None:
        if name in self.failing:
            raise self.failing[name]

    async def _note(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise self.failing[name]

    async def start(self) -> None:
        await self._note("start")

    async def stop(self) -> None:
        await self._note("stop")

    async def begin_transaction(self) -> None:
        await self._note("begin")

    async def send(self, topic: str, *, value: bytes, key: bytes, partition: int, headers: Any) -> asyncio.Future[None]:
        self.calls.append(("send", topic, value, key, partition, headers))
        future = asyncio.get_running_loop().create_future()
        if "delivery" in self.failing:
            future.set_exception(self.failing["delivery"])
        else:
            future.set_result(None)
        return future

    async def send_offsets_to_transaction(self, offsets: Any, group: str) -> None:
        self.calls.append(("offsets", offsets, group))

    async def commit_transaction(self) -> None:
        await self._note("commit")

    async def abort_transaction(self) -> None:
        await self._note("abort")


class FakeAdmin:
    """Answers with what is committed, and notes when it was asked."""

    def __init__(self, calls: list[Any], committed: OffsetAndMetadata) -> None:
        self.calls = calls
        self.committed = committed
        self._client = SimpleNamespace(bootstrap=None)

    async def start(self) -> None:
        """Connected."""

    async def close(self) -> None:
        """Gone."""

    async def list_consumer_group_offsets(self, _group: str, partitions: list[TopicPartition]) -> Any:
        self.calls.append("read")
        return dict.fromkeys(partitions, self.committed)


class FakeTopicConsumer:
    """Reads one partition of a topic from its beginning; `pages` are what each look finds."""

    def __init__(self, *pages: list[tuple[bytes | None, bytes | None]], **options: Any) -> None:
        self.options = options
        self.stopped = False
        self.error: Exception | None = None
        self._client = SimpleNamespace(bootstrap=None)
        self._pages = [*pages]
        self._at = 0
        self._end = sum(map(len, pages)) + 3  # markers of transactions take offsets too

    async def start(self) -> None:
        """Connected."""

    async def stop(self) -> None:
        self.stopped = True

    def assign(self, places: list[TopicPartition]) -> None:
        self.places = places

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, self._end)

    async def position(self, _place: TopicPartition) -> int:
        return self._at

    async def getmany(self, place: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        assert timeout_ms > 0
        if self.error is not None:
            raise self.error
        page = self._pages.pop(0) if self._pages else []
        self._at = self._end if not self._pages else self._at + len(page)
        return {place: [SimpleNamespace(key=key, value=value) for key, value in page]} if page else {}
