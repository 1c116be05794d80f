"""Writing to one caller without a task: order, slowness, and callers that are gone."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.frontend import outbox
from sidecar.frontend.outbox import Outbox, Unread


class Reader:
    """Stands where grpc.aio's context does: each write waits until the reader takes it."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.blocked: asyncio.Future[None] | None = None

    async def write(self, message: bytes) -> None:
        if self.blocked is not None:
            await self.blocked
        self.taken.append(message)

    def stop_reading(self) -> None:
        self.blocked = asyncio.get_running_loop().create_future()

    def read_on(self) -> None:
        if self.blocked is not None:
            blocked, self.blocked = self.blocked, None
            blocked.set_result(None)


async def turn() -> None:
    """Everything that was ready has run."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_messages_are_written_in_order_also_when_the_reader_pauses() -> None:
    reader = Reader()
    box = Outbox(reader)
    box.put(b"1")
    reader.stop_reading()
    box.put(b"2")
    box.put(b"3")
    await turn()
    assert reader.taken == [b"1"]
    reader.read_on()
    await turn()
    box.put(b"4")
    assert reader.taken == [b"1", b"2", b"3", b"4"]


async def test_it_has_finished_only_when_everything_is_written() -> None:
    reader = Reader()
    box = Outbox(reader)
    reader.stop_reading()
    box.put(b"1")
    box.put(b"2")
    box.close()
    finished = asyncio.ensure_future(box.finished())
    await turn()
    assert not finished.done()
    reader.read_on()
    await finished
    assert reader.taken == [b"1", b"2"]


async def test_closing_an_idle_one_finishes_it_at_once() -> None:
    box = Outbox(Reader())
    box.close()
    await box.finished()


async def test_a_slow_reader_fills_it_and_has_room_again_once_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OUTBOX_HIGH", 2)
    monkeypatch.setattr(outbox, "OUTBOX_MAX", 4)
    reader = Reader()
    box = Outbox(reader)
    reader.stop_reading()
    for number in range(5):
        assert not box.overflow()
        box.put(b"%d" % number)
    assert box.overflow() == "4 responses of 4 bytes wait to be read, and no more may"
    room = asyncio.ensure_future(box.room())
    await turn()
    assert not room.done()
    reader.read_on()
    await room
    assert not box.overflow()


async def test_a_few_large_messages_fill_it_as_many_small_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OUTBOX_BYTES_HIGH", 20)
    monkeypatch.setattr(outbox, "OUTBOX_BYTES_MAX", 40)
    reader = Reader()
    box = Outbox(reader)
    reader.stop_reading()
    for _ in range(4):
        box.put(b"x" * 11)
    room = asyncio.ensure_future(box.room())
    await turn()
    assert not room.done()
    assert not box.overflow()
    box.put(b"x" * 11)
    assert box.overflow() == "4 responses of 44 bytes wait to be read, and no more may"
    reader.read_on()
    await room
    assert not box.overflow()
    assert len(reader.taken) == 5


async def test_when_all_callers_together_read_too_slowly_the_slow_ones_are_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "OUTBOX_BYTES_HIGH", 20)
    monkeypatch.setattr(outbox, "ALL_BYTES_MAX", 60)
    unread = Unread()
    readers = [Reader() for _ in range(3)]
    slow, slower, modest = boxes = [Outbox(reader, unread) for reader in readers]
    for reader in readers:
        reader.stop_reading()
    for box, size in ((slow, 25), (slower, 30), (modest, 10)):
        box.put(b"begun")
        box.put(b"x" * size)
    assert [bool(box.overflow()) for box in boxes] == [True, True, False]
    slower.drop()
    assert [bool(box.overflow()) for box in boxes] == [False] * 3
    for reader in readers:
        reader.read_on()
    await turn()
    assert unread.bytes == 0
    assert [len(reader.taken) for reader in readers] == [2, 1, 2]


@pytest.mark.parametrize("error", [RuntimeError("the RPC is over"), asyncio.CancelledError()])
async def test_when_the_caller_is_gone_the_rest_is_dropped(error: BaseException) -> None:
    reader = Reader()
    box = Outbox(reader)
    reader.stop_reading()
    box.put(b"1")
    box.put(b"2")
    assert reader.blocked is not None
    reader.blocked.set_exception(error)
    await turn()
    reader.blocked = None
    box.put(b"3")
    box.close()
    await box.finished()
    assert reader.taken == []
