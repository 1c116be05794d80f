"""Odd items and odd messages among good ones, on the real Kafka and the real Triton: nobody suffers for another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dev.fuzz import FuzzTarget, Report, deployed, feed_items, feed_messages, footprint

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
COUNT = 8_000
GROWTH_MIB = 24.0  # of the second half of a feed: what a heap that was used twice may differ by


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FuzzTarget]:
    async with deployed(Path(tmp_path_factory.mktemp("fuzz"))) as running:
        yield running
        log = running.server.log.read_text(errors="replace")
        assert "Traceback" not in log
        await running.server.drain()


def judge(reports: list[Report]) -> None:
    """Each good one was answered rightly, and nothing else is wrong."""
    for report in reports:
        assert report.wrong == []
        assert report.good_answered == report.good > 0


async def test_no_odd_item_harms_another(deployment: FuzzTarget) -> None:
    first = await feed_items(deployment, count=COUNT // 2, seed=11)
    half = await footprint(deployment.server)
    second = await feed_items(deployment, count=COUNT // 2, seed=12)
    whole = await footprint(deployment.server, half)
    judge([first, second])
    assert second.outcomes["result"] > first.outcomes["result"] >= first.good
    assert whole.rss_mib <= half.rss_mib + GROWTH_MIB


async def test_no_odd_message_harms_another(deployment: FuzzTarget) -> None:
    first = await feed_messages(deployment, count=COUNT // 2, seed=21)
    half = await footprint(deployment.server)
    second = await feed_messages(deployment, count=COUNT // 2, seed=22)
    whole = await footprint(deployment.server, half)
    judge([first, second])
    assert {"unary_OK", "unary_INVALID_ARGUMENT", "unary_NOT_FOUND"} <= set(first.outcomes)
    assert whole.rss_mib <= half.rss_mib + GROWTH_MIB
