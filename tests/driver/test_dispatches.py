"""Tokens are gathered into one event per engine and tick, none is lost, none is told twice."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.events import Dispatch, Progressed
from sidecar.core.request import DispatchKind
from sidecar.driver import dispatches
from sidecar.driver.dispatches import Dispatched, ProgressTicks


def dispatched(request_id: str, engine: str = "e") -> Dispatched:
    dispatch = Dispatch(
        request_id=request_id, engine=engine, kind=DispatchKind.ONLINE, output_tokens=100, slots=1, queue_wait_s=0.0
    )
    return Dispatched(dispatch=dispatch, request_id=f"k-{request_id}", begun_s=1.0)


class Ticks:
    """Ticks of a driver, what they told, and the clock."""

    def __init__(self) -> None:
        self.told: list[Progressed] = []
        self.ticks = ProgressTicks(self.told.append)

    def take(self) -> list[Progressed]:
        found, self.told[:] = [*self.told], []
        return found


async def test_tokens_of_one_tick_are_one_event_with_first_tokens_and_gaps() -> None:
    made, a, b = Ticks(), dispatched("a"), dispatched("b")
    made.ticks.note(a, 1, 10.0)
    made.ticks.note(b, 2, 10.5)
    made.ticks.note(a, 3, 11.0)
    made.ticks.flush("e")
    assert made.take() == [
        Progressed(engine="e", tokens=(("a", 4), ("b", 2)), first_tokens=("a", "b"), gaps_s=(1.0,)),
    ]
    made.ticks.note(a, 1, 11.25)
    made.ticks.flush("e")
    assert made.take() == [Progressed(engine="e", tokens=(("a", 1),), first_tokens=(), gaps_s=(0.25,))]
    made.ticks.close()


async def test_tokens_found_at_once_after_a_pause_of_ours_are_told_with_equal_gaps() -> None:
    made, a, b = Ticks(), dispatched("a"), dispatched("b")
    made.ticks.note(a, 1, 10.0)
    made.ticks.note(b, 1, 10.0)
    made.ticks.flush("e")
    made.take()
    for now_s in (10.75, 10.75, 10.75):  # three iterations of a quarter of a second, all read after the third
        made.ticks.note(a, 1, now_s)
    made.ticks.note(b, 2, 10.75)  # one iteration that gave two tokens
    made.ticks.flush("e")
    assert made.take()[0].gaps_s == (0.25, 0.25, 0.25, 0.75)
    made.ticks.note(a, 1, 11.0)
    made.ticks.flush("e")
    assert made.take()[0].gaps_s == (0.25,)
    made.ticks.close()


async def test_an_engine_that_streamed_nothing_tells_nothing() -> None:
    made = Ticks()
    made.ticks.flush("e")
    made.ticks.note(dispatched("a"), 1, 10.0)
    made.ticks.flush("other")
    made.ticks.flush("e")
    made.ticks.flush("e")
    assert len(made.take()) == 1
    made.ticks.close()


async def test_each_engine_has_an_event_of_its_own_at_the_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatches, "TICK_S", 0.0)
    made = Ticks()
    made.ticks.note(dispatched("a", "one"), 1, 10.0)
    made.ticks.note(dispatched("b", "two"), 1, 10.0)
    assert made.told == []
    async with asyncio.timeout(5):
        while len(made.told) < 2:  # noqa: ASYNC110 - a state, not an event
            await asyncio.sleep(0)
    assert {each.engine: each.tokens for each in made.take()} == {"one": (("a", 1),), "two": (("b", 1),)}
    made.ticks.note(dispatched("c", "one"), 1, 11.0)  # the next tick has a timer of its own
    async with asyncio.timeout(5):
        while not made.told:  # noqa: ASYNC110 - a state, not an event
            await asyncio.sleep(0)


async def test_after_the_end_no_tick_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatches, "TICK_S", 0.0)
    made = Ticks()
    made.ticks.close()  # nothing is under way
    made.ticks.note(dispatched("a"), 1, 10.0)
    made.ticks.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert made.told == []


async def test_what_was_reported_before_an_end_is_not_reported_by_the_next_tick() -> None:
    made, a, b = Ticks(), dispatched("a"), dispatched("b")
    made.ticks.note(a, 2, 10.0)
    made.ticks.note(b, 1, 10.0)
    made.ticks.flush("e")  # `a` is about to end
    made.ticks.note(b, 1, 10.5)
    made.ticks.flush("e")
    assert [each.tokens for each in made.take()] == [(("a", 2), ("b", 1)), (("b", 1),)]
    assert (a.tokens, a.tokens_reported, b.tokens, b.tokens_reported) == (2, 2, 2, 2)
    made.ticks.close()


STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), max_size=30)


@settings(max_examples=30)
@given(STEPS)
def test_every_token_is_told_once_and_every_dispatch_begins_once(steps: list[tuple[int, int, bool]]) -> None:
    async def run() -> None:
        made = Ticks()
        running = [dispatched(f"r{number}", f"e{number % 2}") for number in range(4)]
        wanted: Counter[str] = Counter()
        for at_s, (number, tokens, flush) in enumerate(steps):
            made.ticks.note(running[number], tokens, float(at_s))
            wanted[f"r{number}"] += tokens
            if flush:
                made.ticks.flush(f"e{number % 2}")
        for engine in ("e0", "e1"):
            made.ticks.flush(engine)
        made.ticks.close()
        told: Counter[str] = Counter()
        for event in made.told:
            told.update(dict(event.tokens))
            assert len(dict(event.tokens)) == len(event.tokens)
        assert told == wanted
        begun = [each for event in made.told for each in event.first_tokens]
        assert sorted(begun) == sorted(wanted)
        gaps = [each for event in made.told for each in event.gaps_s]
        assert len(gaps) == len(steps) - len(wanted)

    asyncio.run(run())


def test_a_dispatch_was_last_heard_when_it_gave_a_token_or_when_it_began() -> None:
    one = dispatched("a")
    assert one.heard_s == 1.0
    one.last_token_s = 7.0
    assert one.heard_s == 7.0


def test_two_dispatches_are_never_equal_whatever_they_hold() -> None:
    assert dispatched("a") != dispatched("a")  # they are keys, and change
