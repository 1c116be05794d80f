"""Which offline slices to stop, when online needs their slots or their KV, or when offline yields.

A victim keeps its tokens and resumes later; stopping it wastes what the KV cache will not remember. Never a victim: a
turn of the reservation, what cannot resume (a piece of its prompt is no loss), and what gives its slot back by itself
before a stop would.
"""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.core.item import Item, State


def is_ending(item: Item, soon_tokens: int) -> bool:
    """True if its slice is over within `soon_tokens`, or only fills the cache with a piece of its prompt."""
    return item.fills_cache or item.budget_tokens - item.streamed_tokens <= soon_tokens


def candidates(residents: Iterable[Item], soon_tokens: int, sticky_after: int | None) -> list[Item]:
    """The slices that may be stopped; `sticky_after` = None where yielding spares nobody.

    Who yields also drops a piece of a prompt: in the engine's queue it would join the arrival's own iteration.
    """
    return [
        item
        for item in residents
        if item.state is State.RUNNING
        and (item.work.resumable or item.fills_cache)
        and not item.turn
        and (not is_ending(item, soon_tokens) or (sticky_after is None and item.fills_cache))
        and (sticky_after is None or item.preemptions < sticky_after)
    ]


def cheapest_first(items: Iterable[Item], hit: float, quantum_tokens: int) -> list[Item]:
    """Those first whose stop wastes least; of equals, those that would have held their slot longest.

    A slice that has not yet given `quantum_tokens` comes last, or it would never get anywhere.
    """

    def cost(item: Item) -> tuple[bool, float, int, int]:
        context = item.context_tokens + item.streamed_tokens
        wasted = context * (1 - hit)
        held = item.budget_tokens - item.streamed_tokens
        return item.streamed_tokens < quantum_tokens, wasted, -held, -item.sequence

    return sorted(items, key=cost)


def until_free(victims: Iterable[Item], slots: int, kv_tokens: float) -> list[Item]:
    """The first of `victims` whose slots and KV tokens cover what is missing; all of them if they do not."""
    chosen = []
    for item in victims:
        if slots <= 0 and kv_tokens <= 0:
            break
        chosen.append(item)
        slots -= item.work.slots
        kv_tokens -= item.kv_tokens
    return chosen
