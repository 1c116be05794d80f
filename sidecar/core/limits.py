"""What an engine lends to offline work now, and which limit binds.

The limits are asked in a fixed order, the cheap ones first; the first that binds is told. Every function here only
reads: whoever asks has called `engine.advance(now_s)` before.
"""

from __future__ import annotations

from math import inf

from sidecar.core.engine import Engine, Limit
from sidecar.core.request import OFFLINE
from sidecar.core.tracked_request import TrackedRequest

SPARED = 1.25  # times the rows that the price allows: beyond it rows are stopped
OUTSTANDING = 2.5  # chunks of prompts at a time: two, which need not be of one length


def find_limit(engine: Engine, tracked: TrackedRequest, now_s: float) -> Limit:
    """Find what keeps backfill from giving `tracked` its slots now; NONE if nothing does."""
    slots, free, ledger = tracked.request.slots, engine.free.slots, engine.ledger
    if slots > free:
        return Limit.SLOTS
    offline = engine.in_use[OFFLINE]
    rows = offline + slots
    if slots > free - ledger.foreign_slots or rows > ledger.offline_slots_max:
        return Limit.FOREIGN
    if rows > rows_max(engine, 0, now_s):
        return Limit.PRICE if engine.settings.yield_rows == "auto" else Limit.YIELD
    if slots > free - engine.headroom:
        return Limit.HEADROOM
    if slots > engine.free.ripe(now_s):
        return Limit.WINDOW
    if ledger.kv_tokens_max != inf and not _kv_allows(engine, tracked):
        return Limit.KV
    chunk = _next_chunk(engine, tracked)
    if not has_room(engine, tracked):
        return Limit.PRICE
    if _prefill_waits(engine, chunk) or not engine.pacing.allows(chunk, engine.chunk_tokens):
        return Limit.PREFILL
    return Limit.NONE


def lendable(engine: Engine, now_s: float, online_slots: int = 0) -> float:
    """How many slots backfill may take now, once online has taken `online_slots`."""
    ripe, free = engine.free.ripe(now_s), engine.free.slots
    left = min(ripe - max(0, online_slots - (free - ripe)), free - online_slots - engine.headroom)
    rows = rows_max(engine, online_slots, now_s)
    return min(left - engine.ledger.foreign_slots, rows - engine.in_use[OFFLINE])


def rows_max(engine: Engine, online_waiting: int, now_s: float) -> float:
    """How many rows offline may have once so many online requests that wait are there."""
    return engine.look(now_s, online_waits=online_waiting > 0).rows


def yields_to(engine: Engine, online_waiting: int, now_s: float) -> float:
    """Beyond how many rows offline is stopped now: a row or two too many end by themselves."""
    rows = rows_max(engine, online_waiting, now_s)
    return rows * SPARED if engine.settings.yield_rows == "auto" else rows


def has_room(engine: Engine, tracked: TrackedRequest) -> bool:
    """True if an iteration has room for what `tracked` must compute of its prompt, as of the last look. Whoever can go
    on at once needs none."""
    return engine.room.chunk_tokens > 0 or engine.remembers(tracked)


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
        case Limit.PRICE:
            return engine.room.until_s
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
    if engine.settings.prefill_slice_tokens is None:  # one chunk is computed while the next one waits
        bound = min(bound, int(OUTSTANDING * engine.chunk_tokens))
    return bool(ahead) and 0 < bound < ahead + chunk


def prefill_next_s(engine: Engine, tracked: TrackedRequest) -> float:
    """When pacing allows the next chunk of `tracked`; inf if other prompts go first, for only an event ends that."""
    chunk = _next_chunk(engine, tracked)
    return (
        inf if _prefill_waits(engine, chunk) else engine.pacing.next_s(chunk, engine.chunk_tokens, engine.iteration_s)
    )


def _next_chunk(engine: Engine, tracked: TrackedRequest) -> int:
    """Prompt tokens that the next dispatch of `tracked` would compute."""
    uncached = engine.uncached_tokens(tracked)
    return min(uncached, engine.chunk_tokens) if engine.splits(tracked) else uncached
