"""What an engine lends to offline work now, and which limit binds.

The limits are asked in a fixed order, the cheap ones first; the first that binds is told. Every function here only
reads: whoever asks has called `engine.advance(now_s)` before.
"""

from __future__ import annotations

from math import inf

from sidecar.core.engine import Engine, Limit
from sidecar.core.request import OFFLINE
from sidecar.core.tracked_request import TrackedRequest


def find_limit(engine: Engine, tracked: TrackedRequest, now_s: float) -> Limit:
    """Find what keeps backfill from giving `tracked` its slots now; NONE if nothing does."""
    slots, free, ledger = tracked.request.slots, engine.free.slots, engine.ledger
    if slots > free:
        return Limit.SLOTS
    offline = engine.in_use[OFFLINE]
    rows = offline + slots
    if slots > free - ledger.foreign_slots or rows > ledger.offline_slots_max:
        return Limit.FOREIGN
    if rows > rows_max(engine, 0, now_s) or (offline and rows > engine.attribution.aimd_rows):
        return _rows_limit(engine, now_s)
    if slots > free - engine.headroom:
        return Limit.HEADROOM
    if slots > engine.free.ripe(now_s):
        return Limit.WINDOW
    if ledger.kv_tokens_max != inf and not _kv_allows(engine, tracked):
        return Limit.KV
    chunk = _next_chunk(engine, tracked)
    if _prefill_waits(engine, chunk) or not engine.pacing.allows(chunk, engine.chunk_tokens):
        return Limit.PREFILL
    if not _prefill_harmless(engine, chunk, beside_online=engine.online_slots > 0):
        return Limit.LATENCY
    return Limit.NONE


def lendable(engine: Engine, now_s: float, online_slots: int = 0) -> float:
    """How many slots backfill may take now, once online has taken `online_slots`."""
    ripe, free = engine.free.ripe(now_s), engine.free.slots
    left = min(ripe - max(0, online_slots - (free - ripe)), free - online_slots - engine.headroom)
    rows = min(rows_max(engine, online_slots, now_s), engine.attribution.aimd_rows)
    return min(left - engine.ledger.foreign_slots, rows - engine.in_use[OFFLINE])


def rows_max(engine: Engine, online_waiting: int, now_s: float) -> float:
    """How many rows offline may have; inf unless it has to yield."""
    online = engine.online_slots + online_waiting
    return engine.yield_limit.rows_max(online, now_s) if online or now_s < engine.yield_limit.until_s else inf


def yields_to(engine: Engine, online_waiting: int, now_s: float) -> float:
    """Beyond how many rows offline is stopped now. All of them if online waits for a slot: an engine at rest takes
    it at once, one that goes on iterating takes it an iteration later (simulated)."""
    if online_waiting and engine.settings.yield_rows == "auto" and engine.scheduler.guard:
        return 0
    return rows_max(engine, online_waiting, now_s)


def _rows_limit(engine: Engine, now_s: float) -> Limit:
    """Which of the limits on offline's rows is the smallest."""
    if engine.attribution.aimd_rows < rows_max(engine, 0, now_s):
        return Limit.AIMD
    return Limit.LATENCY if engine.settings.yield_rows == "auto" else Limit.YIELD


def prefill_harmless(engine: Engine, tracked: TrackedRequest, *, beside_online: bool) -> bool:
    """True if the guard lets the prompt of `tracked`, or what is not cached of it, be computed now."""
    return _prefill_harmless(engine, _next_chunk(engine, tracked), beside_online=beside_online)


def _prefill_harmless(engine: Engine, chunk: int, *, beside_online: bool) -> bool:
    if engine.settings.yield_rows != "auto":
        return True
    ahead = engine.ledger.prefill_tokens[OFFLINE]
    return engine.attribution.guard.prefill_allows(chunk, ahead, beside_online=beside_online)


def kv_leaves(engine: Engine, online: TrackedRequest, offline: TrackedRequest) -> bool:
    """True if backfill would still have KV for `offline` once `online` has its own."""
    ledger = engine.ledger
    if ledger.kv_tokens_free == inf:
        return True
    left = ledger.kv_tokens_free - engine.kv_need(online) - ledger.guard_tokens(engine.headroom)
    return engine.kv_need(offline) <= left


def next_chance_s(engine: Engine, now_s: float) -> float:
    """When the limit that binds may be lifted by time alone; inf if only an event can lift it."""
    if not engine.free.slots:
        return inf
    match engine.limit_binding:
        case Limit.WINDOW:
            return engine.free.next_ripe_s(now_s)
        case Limit.YIELD | Limit.LATENCY:
            return engine.yield_limit.until_s
        case Limit.PREFILL:
            return engine.prefill_next_s
        case Limit.HEADROOM if engine.headroom > engine.settings.slots_online_min:
            return engine.fresh_until_s
    return inf


def _kv_allows(engine: Engine, tracked: TrackedRequest) -> bool:
    ledger = engine.ledger
    guard = ledger.guard_tokens(engine.headroom) if ledger.kv_tokens else 0.0  # an idle engine has no one to guard
    return engine.kv_need(tracked) <= ledger.kv_tokens_free - guard


def _prefill_waits(engine: Engine, chunk: int) -> bool:
    """True if other prompts go first: only so many offline tokens are in prefill at a time, or a single prompt."""
    ledger = engine.ledger
    if chunk > ledger.long_tokens and (engine.online_slots or ledger.long_prefills):
        return True
    ahead, bound = ledger.prefill_tokens[OFFLINE], engine.scheduler.offline_prefill_tokens
    return bool(ahead) and 0 < bound < ahead + chunk


def prefill_next_s(engine: Engine, tracked: TrackedRequest) -> float:
    """When pacing allows the next chunk of `tracked`; inf if other prompts go first, for only an event ends that."""
    chunk = _next_chunk(engine, tracked)
    return inf if _prefill_waits(engine, chunk) else engine.pacing.next_s(chunk, engine.chunk_tokens, engine.gap_s)


def _next_chunk(engine: Engine, tracked: TrackedRequest) -> int:
    """Prompt tokens that the next dispatch of `tracked` would compute."""
    uncached = engine.uncached_tokens(tracked)
    return min(uncached, engine.chunk_tokens) if engine.splits(tracked) else uncached
