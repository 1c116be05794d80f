"""The table of faults: what a row says of calls, and that each fault is described."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from dev.front_chaos import FAULTS, FIELDS, Called, FrontScene, GoodCallers, page, row
from tests.fakes.sidecar import running_sidecar
from tests.fakes.triton import FakeTriton


def scene() -> FrontScene:
    nobody: Any = None
    return FrontScene(
        sidecar=nobody,
        engine_ports=(1, 2),
        engine=nobody,
        seconds=1,
        seed=1,
        p99_s=0.2,
        tasks=10,
        rss_mib=100.0,
        others=Counter({"OK": 1_200, "RESOURCE_EXHAUSTED": 3}),
    )


def calls(status: str, count: int, took_s: float = 0.3) -> list[Called]:
    return [Called(begun_s=0.0, took_s=took_s, status=status)] * count


def test_a_row_says_what_callers_saw_and_what_is_left() -> None:
    found = row(scene(), "flood", [*calls("OK", 30), *calls("UNAVAILABLE", 2), *calls("hangs", 1)], 0.44, 9, 103.4)
    assert list(found.values()) == [
        "flood", "30 OK, 2 UNAVAILABLE, 1 hangs", "1.50×", "1", "0.4 s", "+3 MiB", "-1",
        "1,200 OK, 3 RESOURCE_EXHAUSTED",
    ]  # fmt: skip


def test_of_few_answers_no_percentile_is_told_and_what_never_heals_is_said() -> None:
    found = row(scene(), "flood", calls("OK", 19), None, 10, 100.0)
    assert (found["p99"], found["healed after"]) == ("–", "never")


def test_the_page_has_a_line_and_a_description_for_each_fault() -> None:
    rows = [dict.fromkeys(FIELDS, "x") | {"fault": name} for name in FAULTS]
    text = page(rows, "a run")
    for name, (said, _) in FAULTS.items():
        assert said.endswith(".")
        assert f"| {name} | {said} |" in text
        assert text.count(f"| {name} |") == 2


@pytest.mark.parametrize(
    ("ids", "status"), [(range(8), "OK"), (range(7), "wrong"), (None, "UNAVAILABLE")], ids=["whole", "short", "broken"]
)
async def test_well_behaved_callers_note_what_they_got(
    triton: FakeTriton, ids: Sequence[int] | None, status: str
) -> None:
    async def answer() -> None:
        while True:
            request = await triton.next()
            if ids is None:
                request.break_stream()
            else:
                request.tokens(*ids, final=True)

    async with running_sidecar({"e0": triton}) as sidecar:
        answering = asyncio.ensure_future(answer())
        async with GoodCallers(sidecar.address) as good:
            await sidecar.until(lambda: len(good.calls) > 1)
        answering.cancel()
    assert {each.status for each in good.calls} == {status}
