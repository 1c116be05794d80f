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
from sidecar.core.item import Item
from sidecar.core.latency import Batch, LatencyFigures, LatencyModel
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.work import OFFLINE

HARMLESS = 0.05  # a request that took at most so much longer than alone was not late because of offline


@dataclass(frozen=True, slots=True, kw_only=True)
class InterferenceFigures:
    """What is known about one engine, for gauges and people."""

    latency: LatencyFigures
    guard_rows: int | None  # that offline may have beside the online ones of now; None = as many as there are
    guard_margin: float
    slack_ms: float
    aimd_rows: int | None  # None = no limit: it has never come to a decrease
    aimd_decreases: int
    attributed: int  # online requests with an account
    alone_ms: float  # mean of what they would have taken alone, from grant to end
    added_ms: float  # mean of what they took beyond it
    online_late: int  # online requests that missed an objective


class Presence:
    """A clock that runs while backfill is in the engine, from grant to confirmation. Turns do not count.

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


class Interference:
    """One engine's latency model, its guards and its accounts."""

    def __init__(self, engine: EngineSettings, scheduler: SchedulerSettings) -> None:
        self._ttft_s, self._e2e_s = scheduler.ttft_objective_ms / 1000, scheduler.e2e_objective_ms / 1000
        self._late_starts, self._late_ends = Lateness(95), Lateness(99)
        self.batch = Batch()
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

    # ---- one dispatch, from grant to end -----------------------------------------------------------------------------

    def began(self, item: Item, now_s: float) -> None:
        """`item` was dispatched, and stands in the ledger."""
        item.begun_s = now_s
        item.backfill_s = self._backfill.seconds(now_s)
        if item.is_backfill:
            self._backfill.entered(now_s)
        self.batch.prefilling[item.work.id] = now_s
        cached = max(0, item.context_tokens - item.prefill_tokens) if not item.fills_cache else item.expected_reuse
        self.guard.began(item.work.id, item.work.lane, item.prefill_tokens, cached)

    def streamed(self, gaps_s: tuple[float, ...], begun: list[Item], now_s: float) -> None:
        """A tick: the gaps between tokens, and `begun`, which gave their first token in it."""
        batch = self.batch
        if gaps_s:
            self._gap_s, self._gap_at_s = max(gaps_s), now_s
        if gaps_s and not begun:
            self.model.observe(sorted(gaps_s)[len(gaps_s) // 2], batch, now_s)
        elif gaps_s and len(begun) == 1:
            self._computed(begun[0], now_s)
        for item in begun:
            if item.decoding:
                continue
            item.decoding = True
            batch.prefilling.pop(item.work.id, None)
            item.first_token_s = item.first_token_s or now_s
            batch.rows[item.work.lane] += item.work.slots
            batch.context[item.work.lane] += item.context_tokens
            batch.changed_s = now_s
        if self._aimd:
            self._aimd.tick(batch.rows[OFFLINE], now_s)
        self.guard.margin.tick(now_s)

    def _computed(self, item: Item, now_s: float) -> None:
        """A prompt, or a piece of one, is done: if it was alone in its iteration, that shows its price."""
        told = now_s - self._gap_at_s < self._gap_s / 2
        if not told or item.decoding or item.torn:
            return
        sent_tokens = item.context_tokens if item.prompt_tokens is None else item.prompt_tokens
        self.model.observe(
            self._gap_s,
            self.batch,
            now_s,
            computed=item.work.id,
            tokens=item.prefill_tokens,
            cached=max(0, sent_tokens - item.prefill_tokens),
            is_piece=item.fills_cache,
        )

    def left(self, item: Item, now_s: float) -> None:
        """The dispatch of `item` is over."""
        batch, lane = self.batch, item.work.lane
        batch.context[lane] -= item.streamed_tokens
        if item.decoding:
            batch.rows[lane] -= item.work.slots
            batch.context[lane] -= item.context_tokens
        else:
            if item.fills_cache:
                self._computed(item, now_s)
            item.torn = not item.fills_cache
            batch.prefilling.pop(item.work.id, None)
        if item.is_backfill:
            self._backfill.left(now_s)
        item.decoding = False
        batch.changed_s = now_s
        self.guard.left(item.work.id)

    def complete(self, item: Item, output_tokens: int, now_s: float) -> None:
        """An online request is complete, and has not left yet: its account, and whether it missed an objective."""
        work = item.work
        alone_s, took_s = self.guard.alone_s(work.id, output_tokens), now_s - item.begun_s
        if alone_s is not None:
            self._attributed += 1
            self._alone_s += alone_s
            self._added_s += took_s - alone_s
            self.guard.remember(alone_s)
        ttft_s = (item.first_token_s or now_s) - work.arrived_s
        late_start = ttft_s > (work.ttft_objective_ms / 1000 or self._ttft_s)
        late_end = now_s - work.arrived_s > self._e2e_s
        self._late += late_start or late_end
        # Who would have been late alone is no reason to hold offline back.
        queued_s = item.begun_s - work.arrived_s
        beside_s = self._backfill.seconds(now_s) - item.backfill_s
        harm_s = beside_s if alone_s is None else min(beside_s, took_s - alone_s)
        harmed = queued_s + harm_s > HARMLESS * (took_s - harm_s)
        violated = [self._late_starts.add(late_start and harmed), self._late_ends.add(late_end and harmed)]
        if any(violated):
            self.guard.margin.tighten(now_s)
            if self._aimd:
                self._aimd.violated(work.arrived_s, now_s)

    def figures(self, online_rows: int) -> InterferenceFigures:
        """As it stands."""
        return InterferenceFigures(
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
