"""When tokens are told to the scheduler: first tokens at the next tick, counts as often as the driver is set to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import floor, inf

from sidecar.core.events import Progressed
from sidecar.sim.machine import Machine
from sidecar.sim.progress import RequestProgress

# An end is preceded by its tick (as with the real driver) only if there was none for so long: to save time.
GAPS_S = 0.1


class MachineTicks:
    """Gathers what the machines streamed into one Progressed per machine, which `tell` takes."""

    def __init__(
        self,
        machines: Mapping[str, Machine],
        alive: Mapping[str, RequestProgress],
        tell: Callable[[Progressed], None],
        *,
        tick_s: float,
        progress_s: float,
    ) -> None:
        """`tick_s`: between two ticks; `progress_s`: at least so long between two reports of counts."""
        self._machines = machines
        self._alive = alive
        self._tell = tell
        self._tick_s = tick_s
        self._progress_s = progress_s
        self._first_tokens: dict[str, list[str]] = {name: [] for name in machines}
        self._progress_at_s = 0.0
        self._gaps_at_s = 0.0
        self.at_s = inf  # the next tick

    def first_token(self, engine: str, request_id: str) -> None:
        """A dispatch gave its first token."""
        self._first_tokens[engine].append(request_id)

    def forget(self, engine: str, request_id: str) -> None:
        """A dispatch broke: its first token, if it waits to be told, is not told."""
        self._first_tokens[engine] = [each for each in self._first_tokens[engine] if each != request_id]

    def before_ends(self, engine: str, now_s: float) -> None:
        """Dispatches may end now: their gaps are told before, unless they were a moment ago."""
        if now_s >= self._gaps_at_s:
            self._report(engine, [], now_s)

    def before_end(self, engine: str, request_id: str, now_s: float) -> None:
        """A dispatch ends now: its first token is told before."""
        if request_id in self._first_tokens[engine]:
            self._report(engine, self._first_tokens[engine], now_s)

    def arm(self, now_s: float) -> None:
        """While an engine works there is a next tick: soon if a first token waits to be told, else for the counts."""
        if any(self._first_tokens.values()):
            self.at_s = min(self.at_s, self._next_s(now_s))
        elif self.at_s == inf and any(machine.occupied for machine in self._machines.values()):
            self.at_s = max(self._next_s(now_s), self._progress_at_s)

    def tick(self, now_s: float) -> None:
        """The time of the next tick has come."""
        self.at_s = inf
        everything = now_s >= self._progress_at_s
        if everything:
            self._progress_at_s = self._next_s(now_s) - self._tick_s + self._progress_s
        for name, machine in self._machines.items():
            self._report(name, machine.running_ids() if everything else self._first_tokens[name], now_s)
        self.arm(now_s)

    def _next_s(self, after_s: float) -> float:
        return (floor(after_s / self._tick_s + 1e-6) + 1) * self._tick_s  # a time on the grid is not its own next tick

    def _report(self, engine: str, ids: list[str], now_s: float) -> None:
        """Tell the tokens of these dispatches since they were last told, and every first token."""
        machine, first = self._machines[engine], tuple(self._first_tokens[engine])
        self._first_tokens[engine] = []
        tokens = tuple(self._news(machine, ids, now_s))
        gaps_s = machine.gaps_s(now_s, self._tick_s)
        if tokens or first or gaps_s:
            self._gaps_at_s = now_s + GAPS_S
            self._tell(Progressed(engine=engine, tokens=tokens, first_tokens=first, gaps_s=gaps_s))

    def _news(self, machine: Machine, ids: list[str], now_s: float) -> Iterator[tuple[str, int]]:
        """What was not told yet. Of a dispatch that has just ended nothing: its terminal event carries the count."""
        for request_id, tokens in machine.output_tokens_of(ids, now_s):
            progress = self._alive.get(request_id)
            if progress is not None and (running := progress.running) is not None:
                new, running.reported_tokens = tokens - running.reported_tokens, tokens
                if new:
                    yield request_id, new
