"""How much offline may slow online down on one engine, and how much it did.

The latency model learns, the guard decides by it, AIMD decides by what happened; each can be switched off. Here they
are told what they have to know, and every online request gets its account: what it took, and what it would have taken
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from sidecar.core.aimd import Aimd, Lateness
from sidecar.core.guard import Guard
from sidecar.core.latency import DecodingRows, LatencyFigures, LatencyModel
from sidecar.core.request import OFFLINE
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.tracked_request import TrackedRequest

HARMLESS = 0.05  # a request that took at most so much longer than alone was not late because of offline


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionFigures:
    """What is known about one engine, for gauges and people."""

    latency: LatencyFigures
    guard_rows: int | None  # that offline may have beside the online ones of now; None = as many as there are
    guard_margin: float
    slack_ms: float
    aimd_rows: int | None  # None = no limit: it has never come to a decrease
    aimd_decreases: int
    attributed: int  # online requests with an account
    alone_ms: float  # mean of what they would have taken alone, from dispatch to end
    added_ms: float  # mean of what they took beyond it
    online_late: int  # online requests that missed an objective


class Presence:
    """A clock that runs while backfill is in the engine, from dispatch to confirmation. Reserved dispatches do not
    count.

    A request cannot have lost more to backfill than the time both were there; it takes no model to know that.
    """

    __slots__ = ("_count", "_seconds", "_since_s")

    def __init__(self) -> None:
        self._count = 0
        self._seconds = self._since_s = 0.0

    def entered(self, now_s: float) -> None:
        """One more dispatch."""
        if not self._count:
            self._since_s = now_s
        self._count += 1

    def left(self, now_s: float) -> None:
        """One less."""
        self._count -= 1
        if not self._count:
            self._seconds += now_s - self._since_s

    def seconds(self, now_s: float) -> float:
        """How long it ran so far."""
        return self._seconds + (now_s - self._since_s if self._count else 0.0)


class Attribution:
    """One engine's latency model, its guards and its accounts."""

    def __init__(self, engine: EngineSettings, scheduler: SchedulerSettings) -> None:
        self._ttft_s, self._e2e_s = scheduler.ttft_objective_ms / 1000, scheduler.e2e_objective_ms / 1000
        self._late_starts, self._late_ends = Lateness(95), Lateness(99)
        self.batch = DecodingRows()
        self.model = LatencyModel()
        self.guard = Guard(
            self.model,
            self.batch,
            enabled=scheduler.guard,
            ttft_s=self._ttft_s,
            e2e_s=self._e2e_s,
            slowdown_max=scheduler.slowdown_max,
        )
        self._aimd = Aimd(engine.slots) if scheduler.aimd else None
        self._backfill = Presence()
        self._gap_s, self._gap_at_s = 0.0, -inf
        self._attributed = self._late = 0
        self._alone_s = self._added_s = 0.0

    @property
    def aimd_rows(self) -> float:
        """Rows that offline may have by what happened to online."""
        return self._aimd.rows if self._aimd and self._aimd.decreases else inf

    # ---- one online request, from its slot to its end ----------------------------------------------------------------

    def began(self, tracked: TrackedRequest, now_s: float) -> None:
        """`tracked` was dispatched, and stands in the ledger."""
        tracked.begun_s = now_s
        tracked.backfill_s = self._backfill.seconds(now_s)
        if tracked.is_backfill:
            self._backfill.entered(now_s)
        self.batch.prefilling[tracked.request.id] = now_s
        cached = (
            max(0, tracked.context_tokens - tracked.prefill_tokens)
            if not tracked.fills_cache
            else tracked.expected_reuse
        )
        self.guard.began(tracked.request.id, tracked.request.lane, tracked.prefill_tokens, cached)

    def streamed(self, gaps_s: tuple[float, ...], begun: list[TrackedRequest], now_s: float) -> None:
        """A tick: the gaps between tokens, and `begun`, which gave their first token in it."""
        batch = self.batch
        if gaps_s:
            self._gap_s, self._gap_at_s = max(gaps_s), now_s
        if gaps_s and not begun:
            self.model.observe(sorted(gaps_s)[len(gaps_s) // 2], batch, now_s)
        elif gaps_s and len(begun) == 1:
            self._computed(begun[0], now_s)
        for tracked in begun:
            if tracked.decoding:
                continue
            tracked.decoding = True
            batch.prefilling.pop(tracked.request.id, None)
            tracked.first_token_s = tracked.first_token_s or now_s
            batch.rows[tracked.request.lane] += tracked.request.slots
            batch.context[tracked.request.lane] += tracked.context_tokens
            batch.changed_s = now_s
        if self._aimd:
            self._aimd.tick(batch.rows[OFFLINE], now_s)
        self.guard.margin.tick(now_s)

    def _computed(self, tracked: TrackedRequest, now_s: float) -> None:
        """A prompt, or a chunk of one, is done: if it was alone in its iteration, that shows its price."""
        told = now_s - self._gap_at_s < self._gap_s / 2
        if not told or tracked.decoding or tracked.interrupted_mid_prompt:
            return
        sent_tokens = tracked.context_tokens if tracked.prompt_tokens is None else tracked.prompt_tokens
        self.model.observe(
            self._gap_s,
            self.batch,
            now_s,
            computed=tracked.request.id,
            tokens=tracked.prefill_tokens,
            cached=max(0, sent_tokens - tracked.prefill_tokens),
            is_chunk=tracked.fills_cache,
        )

    def left(self, tracked: TrackedRequest, now_s: float) -> None:
        """The dispatch of `tracked` is over."""
        batch, lane = self.batch, tracked.request.lane
        batch.context[lane] -= tracked.streamed_tokens
        if tracked.decoding:
            batch.rows[lane] -= tracked.request.slots
            batch.context[lane] -= tracked.context_tokens
        else:
            if tracked.fills_cache:
                self._computed(tracked, now_s)
            tracked.interrupted_mid_prompt = not tracked.fills_cache
            batch.prefilling.pop(tracked.request.id, None)
        if tracked.is_backfill:
            self._backfill.left(now_s)
        tracked.decoding = False
        batch.changed_s = now_s
        self.guard.left(tracked.request.id)

    def complete(self, tracked: TrackedRequest, output_tokens: int, now_s: float) -> None:
        """An online request is complete, and has not left yet: its account, and whether it missed an objective."""
        request = tracked.request
        alone_s, took_s = self.guard.alone_s(request.id, output_tokens), now_s - tracked.begun_s
        if alone_s is not None:
            self._attributed += 1
            self._alone_s += alone_s
            self._added_s += took_s - alone_s
            self.guard.remember(alone_s)
        ttft_s = (tracked.first_token_s or now_s) - request.arrived_s
        late_start = ttft_s > (request.ttft_objective_ms / 1000 or self._ttft_s)
        late_end = now_s - request.arrived_s > self._e2e_s
        self._late += late_start or late_end
        # Who would have been late alone is no reason to hold offline back.
        queued_s = tracked.begun_s - request.arrived_s
        beside_s = self._backfill.seconds(now_s) - tracked.backfill_s
        harm_s = beside_s if alone_s is None else min(beside_s, took_s - alone_s)
        harmed = queued_s + harm_s > HARMLESS * (took_s - harm_s)
        violated = [self._late_starts.add(late_start and harmed), self._late_ends.add(late_end and harmed)]
        if any(violated):
            self.guard.margin.tighten(now_s)
            if self._aimd:
                self._aimd.violated(request.arrived_s, now_s)

    def figures(self, online_rows: int) -> AttributionFigures:
        """As it stands."""
        return AttributionFigures(
            latency=self.model.figures(),
            guard_rows=None if (rows := self.guard.rows_max(online_rows)) == inf else int(rows),
            guard_margin=self.guard.margin.share,
            slack_ms=self.guard.slack_s * 1000,
            aimd_rows=self._aimd.rows if self._aimd and self._aimd.decreases else None,
            aimd_decreases=self._aimd.decreases if self._aimd else 0,
            attributed=self._attributed,
            alone_ms=1000 * self._alone_s / self._attributed if self._attributed else 0.0,
            added_ms=1000 * self._added_s / self._attributed if self._attributed else 0.0,
            online_late=self._late,
        )
