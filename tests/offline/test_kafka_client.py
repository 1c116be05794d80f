"""The consumer: what a fetch refuses, which positions are lost, and headers that cannot be read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient

from sidecar.offline.kafka_client import KafkaLog
from sidecar.offline.kafka_errors import (
    LogError,
    PositionLostError,
)
from sidecar.offline.offsets import Committed
from sidecar.settings.offline import OfflineSettings
from tests.offline import test_header_names


async def test_a_fetch_of_no_partition_is_refused_because_aiokafka_would_read_it_as_all() -> None:
    async def revoked() -> None:
        """Not called."""

    log = KafkaLog(OfflineSettings(), revoked=revoked, assigned=lambda _: None)
    with pytest.raises(ValueError, match="needs a partition"):
        await log.fetch([], 10, 0.0)
    await log.stop()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (Committed(watermark=4, high=4), "at offset 4, and the log holds 5 to 50"),
        (Committed(watermark=51, high=51), "at offset 51, and the log holds 5 to 50"),
        (Committed(watermark=40, high=60, gaps=(40,)), "at offset 40 with items up to 60 done, and the log"),
        (Committed(watermark=40, high=50, gaps=(40,)), ""),
        (Committed(watermark=50, high=50), ""),
    ],
)
async def test_a_log_that_does_not_hold_what_is_committed_is_a_lost_position(
    state: Committed, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any) -> None:
        """Not called."""

    async def begins(_: Any, sources: list[Any]) -> dict[Any, int]:
        return dict.fromkeys(sources, 5)

    async def ends(_: Any, sources: list[Any]) -> dict[Any, int]:
        return dict.fromkeys(sources, 50)

    log = KafkaLog(OfflineSettings(), revoked=nothing, assigned=lambda _: None)
    monkeypatch.setattr(AIOKafkaConsumer, "beginning_offsets", begins)
    monkeypatch.setattr(AIOKafkaConsumer, "end_offsets", ends)
    if said:
        with pytest.raises(PositionLostError, match=said):
            await log._check_position(0, state)
    else:
        await log._check_position(0, state)
    await log.stop()


async def test_after_a_name_that_is_not_utf8_answers_are_made_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        """Not called."""

    async def answered(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(topics=[("t", [(0, 0, 9, broken)])])

    async def unreadable(*_: Any, **__: Any) -> None:
        b"\xff secret".decode()

    broken = test_header_names.batch(0)
    monkeypatch.setattr(AIOKafkaClient, "send", answered)
    monkeypatch.setattr(AIOKafkaConsumer, "getmany", unreadable)
    log = KafkaLog(OfflineSettings(), revoked=nothing, assigned=lambda _: None)
    fetched = log._consumer._client
    assert (await fetched.send(0, "fetch")).topics[0][1][0][-1] is broken
    with pytest.raises(LogError, match="a header whose name is not UTF-8") as caught:
        await log.fetch([0], 10, 0.0)
    assert "secret" not in str(caught.value)
    mended = (await fetched.send(0, "fetch")).topics[0][1][0][-1]
    assert len(test_header_names.read(mended)) == 4
    await log.stop()
