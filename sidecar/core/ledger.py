"""What we have asked of one engine: KV tokens and prompt tokens not yet computed. And what others take of it.

The ledger is the truth for what is ours. A dispatch *holds* prompt + output budget, rounded up to blocks, because the
engine reserves that much before it starts a request (capacity rule GUARANTEED_NO_EVICT), and its prefill; with the
first token the prefill is done and the hold is a *lease*. The engine's gauges only show what is not ours: foreign load,
taken from offline's room. A scrape may be out of step with us, so the least difference of three in a row counts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf, sqrt

from sidecar.core.events import Measured
from sidecar.core.request import ONLINE, Lane
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.tracked_request import TrackedRequest

SCRAPES = 3
GROWTH_WEIGHT = 0.05  # of one more online request in the running mean and variance of what they need


@dataclass(slots=True)
class Ledger:
    """The books of one engine, in tokens."""

    kv_tokens_max: float  # inf = unknown
    block_tokens: int  # as the engine's gauge says, once it does
    guard_share_min: float
    guard_share_max: float
    kv_tokens_set: int = 0  # by the operator; 0 = the gauges' size holds
    long_tokens: float = inf  # a prefill of more is a long one
    long_prefills: int = 0  # in flight
    kv_tokens: int = 0  # held or leased
    prefill_tokens: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    foreign_slots: int = 0
    foreign_kv_tokens: int = 0
    offline_slots_max: float = inf  # frozen while scrapes fail
    _iterations: int | None = None  # at the last scrape
    _foreign: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=SCRAPES))
    _need_mean: float = 0.0
    _need_variance: float = 0.0

    @classmethod
    def of(cls, engine: EngineSettings, scheduler: SchedulerSettings) -> Ledger:
        """The books of an engine that we have asked nothing of."""
        return cls(
            kv_tokens_max=engine.kv_tokens or inf,
            block_tokens=engine.block_tokens,
            kv_tokens_set=engine.kv_tokens,
            guard_share_min=scheduler.kv_guard_share_min,
            guard_share_max=scheduler.kv_guard_share_max,
            long_tokens=scheduler.long_prompt_tokens or inf,
        )

    def need(self, tokens: int) -> int:
        """`tokens` rounded up to whole blocks."""
        return -(-tokens // self.block_tokens) * self.block_tokens

    def hold(self, tracked: TrackedRequest, tokens: int, uncached_tokens: int) -> None:
        """`tracked` was dispatched: it may grow to `tokens` per sequence, and `uncached_tokens` are to be computed."""
        tracked.kv_tokens = self.need(tokens) * tracked.request.slots
        tracked.prefill_tokens = uncached_tokens
        self.kv_tokens += tracked.kv_tokens
        self.prefill_tokens[tracked.request.lane] += uncached_tokens
        self.long_prefills += uncached_tokens > self.long_tokens
        if tracked.request.lane is ONLINE:
            self._learn_need(tracked.kv_tokens)

    def lease(self, tracked: TrackedRequest) -> bool:
        """The first token is there, so the prompt is computed. False if that was known."""
        if not tracked.prefill_tokens:
            return False
        self.prefill_tokens[tracked.request.lane] -= tracked.prefill_tokens
        self.long_prefills -= tracked.prefill_tokens > self.long_tokens
        tracked.prefill_tokens = 0
        return True

    def release(self, tracked: TrackedRequest) -> int:
        """The dispatch is over; how many KV tokens its slots will give back when they are free."""
        self.lease(tracked)
        tokens, tracked.kv_tokens = tracked.kv_tokens, 0
        return tokens

    @property
    def kv_tokens_free(self) -> float:
        """KV tokens that neither we nor others hold."""
        return self.kv_tokens_max - self.kv_tokens - self.foreign_kv_tokens

    @property
    def foreign_known(self) -> bool:
        """True if the last scrape succeeded and told of load: without a page, or with another's, nobody knows."""
        return bool(self._foreign) and self.offline_slots_max == inf

    def guard_tokens(self, online_expected: int) -> float:
        """KV tokens left to online: two deviations above what the expected arrivals need, inside the band."""
        if self.kv_tokens_max == inf:
            return 0.0
        need = max(1, online_expected) * (self._need_mean + 2 * sqrt(self._need_variance))
        low, high = self.guard_share_min * self.kv_tokens_max, self.guard_share_max * self.kv_tokens_max
        return min(max(need, low), high)

    def measured(self, event: Measured, slots_ours: int, offline_slots: int) -> None:
        """Take in a scrape. A failed one freezes offline at what it has (at least one slot); online never notices."""
        if not event.ok:
            self.offline_slots_max = min(self.offline_slots_max, max(1, offline_slots))
            return
        self.offline_slots_max = inf
        kv_used = 0
        # A fresh engine shows 0 until its first iteration: only a size above 0 is one. After a restart it may differ.
        if event.tokens_per_block:
            self.block_tokens = event.tokens_per_block
        if event.kv_blocks_max:
            if event.kv_blocks_free is not None:
                kv_used = (event.kv_blocks_max - event.kv_blocks_free) * self.block_tokens
            self.kv_tokens_max = self.kv_tokens_set or event.kv_blocks_max * self.block_tokens
        if event.active_requests is None and event.kv_blocks_free is None:  # a page that does not tell of this model
            self._foreign.clear()
            self.foreign_slots = self.foreign_kv_tokens = 0
            return
        slots_used = event.active_requests if event.active_requests is not None else 0
        if not slots_ours and event.iterations is not None and event.iterations == self._iterations:
            # An engine with a request iterates. This one is at rest, and its gauges show who ran in the last iteration.
            slots_used = kv_used = 0
        self._iterations = event.iterations
        self._foreign.append((max(0, slots_used - slots_ours), max(0, kv_used - self.kv_tokens)))
        if len(self._foreign) == SCRAPES:
            self.foreign_slots = min(slots for slots, _ in self._foreign)
            self.foreign_kv_tokens = min(tokens for _, tokens in self._foreign)

    def _learn_need(self, tokens: int) -> None:
        difference = tokens - self._need_mean
        weight = GROWTH_WEIGHT if self._need_mean else 1.0
        self._need_mean += weight * difference
        self._need_variance = (1 - weight) * (self._need_variance + weight * difference * difference)
