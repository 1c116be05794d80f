"""How long the lane waits before it tries again: short where time heals, longer where a person has to, and bounded."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.offline import pauses
from sidecar.offline.lane_state import OPERATOR, Cause
from sidecar.offline.pauses import Pauses, wait

LOOK_AGAIN_S = 30.0
HEALED_BY_TIME = Cause.UNREACHABLE


async def pause_s(failures: int, cause: Cause, seed: int = 1) -> float | None:
    """How long this many failures in a row are waited for; None = not at all."""
    waited: list[float] = []

    async def note(_: asyncio.Event, timeout_s: float) -> None:
        waited.append(timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pauses, "wait", note)
        patch.setattr(pauses, "BACKOFF_S", (0.1, 0.2, 0.5, 1.0, 2.0, 5.0))
        await Pauses(LOOK_AGAIN_S, random.Random(seed)).until(asyncio.Event(), failures, cause)
    assert len(waited) <= 1
    return waited[0] if waited else None


async def test_what_did_not_fail_is_not_waited_for() -> None:
    assert await pause_s(0, HEALED_BY_TIME) is None
    assert await pause_s(0, Cause.RIGHTS) is None


@pytest.mark.parametrize(("failures", "most_s"), [(1, 0.1), (2, 0.2), (6, 5.0), (7, 5.0), (10**9, 5.0)])
async def test_what_time_heals_is_tried_again_within_seconds(failures: int, most_s: float) -> None:
    waited_s = await pause_s(failures, HEALED_BY_TIME)
    assert waited_s is not None
    assert most_s / 2 <= waited_s <= most_s


@pytest.mark.parametrize("cause", sorted(OPERATOR))
@pytest.mark.parametrize(("failures", "most_s"), [(1, 1.0), (2, 2.0), (5, 16.0), (6, 30.0), (10**9, 30.0)])
async def test_what_a_person_has_to_mend_is_looked_at_ever_more_seldom_up_to_the_setting(
    cause: Cause, failures: int, most_s: float
) -> None:
    waited_s = await pause_s(failures, cause)
    assert waited_s is not None
    assert most_s / 2 <= waited_s <= most_s


@given(st.integers(1, 100), st.integers(0, 2**32))
def test_two_owners_who_fence_each_other_do_not_wait_equally_long(failures: int, seed: int) -> None:
    first, second = (asyncio.run(pause_s(failures, Cause.FENCED, each)) for each in (seed, seed + 1))
    assert first != second


async def test_a_wait_ends_with_its_event_or_its_time() -> None:
    event = asyncio.Event()
    await wait(event, 0.0)
    event.set()
    await wait(event, 3600.0)


async def test_a_cancelled_wait_is_cancelled() -> None:
    task = asyncio.create_task(wait(asyncio.Event(), 3600.0), name="wait")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
