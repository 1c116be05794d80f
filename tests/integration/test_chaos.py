"""Twenty faults from a seed, on the real Apache Kafka: nothing is lost, nothing is written twice."""

from __future__ import annotations

import pytest

from dev.chaos import ChaosOptions, run

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


async def test_twenty_faults_lose_nothing_and_write_nothing_twice() -> None:
    figures = await run(ChaosOptions(faults=20, seed=7))
    assert (figures["lost"], figures["duplicated"], figures["unfinished"]) == (0, 0, 0), figures
    assert min(figures["faults"].values()) >= 1
    assert sum(figures["faults"].values()) == 20
    assert figures["results"] + figures["dead"] == figures["items"] > 1000
    assert {"empty_output", "result_too_large"} <= figures["dead_reasons"].keys()
