"""What the driver keeps of each request that is not over, and of the dispatch that it may be in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sidecar.call import Call, Terminal, Timeline
from sidecar.core.events import Dispatch, Progressed
from sidecar.core.request import Request
from sidecar.errors import EngineError

TICK_S = 0.01  # tokens enter the scheduler once per tick and engine, not one by one


@dataclass(slots=True, eq=False)
class Dispatched:
    """One stream to an engine."""

    dispatch: Dispatch
    request_id: str
    begun_s: float
    patience_s: float = 0.0  # without a token for longer, the engine is taken to have forgotten it
    stream: Any = None
    tokens: int = 0
    tokens_reported: int = 0
    last_token_s: float | None = None
    gaps_from_s: float = 0.0  # when the gaps began that are not reported, and how many they are
    gaps: int = 0
    stopping: bool = False
    fault: EngineError | None = None  # why nothing of it counts
    confirmed: bool = False  # the engine runs nothing of it any more, although it failed
    broken_off: bool = False  # by us
    linger: asyncio.TimerHandle | None = None  # ends a stream that goes on after its final response
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def heard_s(self) -> float:
        """Return when it last gave a token, or when it began."""
        return self.begun_s if self.last_token_s is None else self.last_token_s


@dataclass(slots=True, eq=False)
class Alive:
    """One request that is not over."""

    request: Request
    call: Call
    timeline: Timeline
    running: Dispatched | None = None
    heard: Terminal | None = None  # what its call hears of the dispatch that has just ended; None while it waits
    generated_tokens: int = 0
    cancelled: bool = False


@dataclass(slots=True)
class _Tick:
    """What one engine streamed since the last Progressed."""

    grown: list[Dispatched] = field(default_factory=list)
    first_tokens: list[str] = field(default_factory=list)


class ProgressTicks:
    """Gathers tokens into one Progressed per engine and tick, which `report` takes.

    The gaps of a stream in one tick are reported as equal ones. On a busy host a process that slept for three
    iterations finds three tokens at once: one long gap, and two of nearly nothing that no iteration lasted.
    """

    def __init__(self, report: Callable[[Progressed], None]) -> None:
        self.heard_s: dict[str, float] = {}  # by engine: when a token of it was last reported
        self._report = report
        self._ticks: dict[str, _Tick] = {}
        self._timer: asyncio.TimerHandle | None = None

    def note(self, running: Dispatched, tokens: int, now_s: float) -> None:
        """A dispatch gave `tokens` more."""
        dispatch = running.dispatch
        if (tick := self._ticks.get(dispatch.engine)) is None:
            tick = self._ticks[dispatch.engine] = _Tick()
        if running.tokens == running.tokens_reported:
            tick.grown.append(running)
        running.tokens += tokens
        if running.last_token_s is not None:
            running.gaps += 1
        else:
            tick.first_tokens.append(dispatch.request_id)
            running.gaps_from_s = now_s
        running.last_token_s = now_s
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._end)

    def flush(self, engine: str) -> None:
        """Report what this engine streamed: at each tick, and before each terminal event."""
        tick = self._ticks.get(engine)
        if tick is None or not tick.grown:
            return
        self.heard_s[engine] = asyncio.get_running_loop().time()
        event = Progressed(
            engine=engine,
            tokens=tuple((each.dispatch.request_id, each.tokens - each.tokens_reported) for each in tick.grown),
            first_tokens=tuple(tick.first_tokens),
            gaps_s=tuple(gap_s for each in tick.grown for gap_s in _even_gaps(each)),
        )
        for each in tick.grown:
            each.tokens_reported = each.tokens
            each.gaps_from_s, each.gaps = each.heard_s, 0
        tick.grown.clear()
        tick.first_tokens.clear()
        self._report(event)

    def close(self) -> None:
        """No more ticks come."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        self._timer = None
        for engine in self._ticks:
            self.flush(engine)


def _even_gaps(running: Dispatched) -> list[float]:
    """The gaps of the tick, each as long as they are on average."""
    if not running.gaps:
        return []
    return [(running.heard_s - running.gaps_from_s) / running.gaps] * running.gaps
