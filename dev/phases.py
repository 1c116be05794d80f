"""One phase after the other on a running sidecar: the load is sent, the status is read, and both are kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from dev.load import Arrival, LoadResult, percentiles, run_load
from dev.report import Reading, phase_report, reading
from dev.server import SidecarProcess
from dev.terminal_view import Moment, View

REFRESH_S = 0.25
FULL_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phase:
    name: str
    before: Reading
    after: Reading
    load: LoadResult


@dataclass(slots=True)
class PhaseRunner:
    """Runs phases on `server` and watches one engine of it."""

    server: SidecarProcess
    engine: str
    view: View
    _done: list[_Phase] = field(default_factory=list)
    _last: Reading | None = None  # the newest reading, also of the time when the sidecar drains

    async def run(self, name: str, requests: Sequence[Arrival], seconds: float) -> None:
        """The phase is over: every request has had its answer or its error."""
        before, load = await self._read(), LoadResult()
        watcher = asyncio.create_task(self._watch(name, before.at_s, seconds, load), name=f"watch {name}")
        try:
            await run_load(self.server.listen, requests, load)
        finally:
            watcher.cancel()
        self._done.append(_Phase(name=name, before=before, after=await self._read(), load=load))
        failed = f", {len(load.errors)} failed (the first: {load.errors[0]})" if load.errors else ""
        self.view.say(f"{name.replace('_', ' ')}: {load.sent} requests{failed}")

    async def until_full(self) -> None:
        """No slot is free: offline work has filled them. Returns after a while even if it has not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FULL_TIMEOUT_S):
                while (await self._read()).slots_free:  # noqa: ASYNC110 - another process cannot set an event of ours
                    await asyncio.sleep(REFRESH_S)

    async def drain(self) -> None:
        """The sidecar has drained and ended; the last reading before that is kept, for reserved dispatches that were
        still owed."""
        watcher = asyncio.create_task(self._watch("draining", (await self._read()).at_s, 1.0, LoadResult()))
        try:
            await self.server.drain()
        finally:
            watcher.cancel()

    def phases(self) -> dict[str, Any]:
        """The report of each phase. Call it after `drain`."""
        settled = [*(phase.before for phase in self._done[1:]), self._last]
        return {
            phase.name: phase_report(phase.before, phase.after, end or phase.after, phase.load)
            for phase, end in zip(self._done, settled, strict=True)
        }

    def answers(self) -> dict[str, str]:
        """Return what callers asked and were answered in all phases, by question."""
        return {question: text for phase in self._done for question, text in phase.load.answers.items()}

    def token_s(self) -> float | None:
        """Return how long online requests took per output token in the first phase; None if there were none."""
        phase = self._done[0]
        tokens = phase.after.tokens["online"] - phase.before.tokens["online"]
        return sum(phase.load.e2e_ms) / 1e3 / tokens if tokens else None

    def late_sends_ms(self, names: Sequence[str]) -> dict[str, float | None]:
        """How long after they were due the requests of these phases were sent: the host's fault, not the sidecar's."""
        return percentiles([each for phase in self._done if phase.name in names for each in phase.load.late_ms])

    async def _read(self) -> Reading:
        self._last = reading(await self.server.status(), self.engine)
        return self._last

    async def _watch(self, name: str, start_s: float, seconds: float, load: LoadResult) -> None:
        """Shows a moment now and then until it is cancelled, or the sidecar answers no more."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            while True:
                status = await self.server.status()
                self._last = reading(status, self.engine)
                self.view.show(_moment(name, status, self.engine, start_s, seconds, load))
                await asyncio.sleep(REFRESH_S)


def _moment(name: str, status: dict[str, Any], engine: str, start_s: float, seconds: float, load: LoadResult) -> Moment:
    waiting = {"online": 0, "offline": 0}
    for lane in status["lanes"]:
        waiting[lane["lane"]] += lane["waiting"]
    return Moment(
        phase=name,
        elapsed_s=status["now_s"] - start_s,
        seconds=seconds,
        engine=status["engines"][engine],
        waiting=waiting,
        offline_done=sum(each["count"] for each in status["offline"]["stats"]["items"] if each["outcome"] == "done"),
        load=load,
    )
