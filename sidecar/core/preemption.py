"""Which offline slices to stop, when online needs their slots or their KV, or when offline yields.

A victim keeps its tokens and resumes later; stopping it wastes what the KV cache will not remember. Never a victim: a
reserved dispatch, what cannot resume (a chunk of its prompt is no loss), and what gives its slot back by itself
before a stop would.
"""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.core.tracked_request import RequestState, TrackedRequest


def is_ending(tracked: TrackedRequest, soon_tokens: int) -> bool:
    """True if its slice is over within `soon_tokens`, or only fills the cache with a chunk of its prompt."""
    return tracked.fills_cache or tracked.budget_tokens - tracked.streamed_tokens <= soon_tokens


def candidates(residents: Iterable[TrackedRequest], soon_tokens: int, sticky_after: int | None) -> list[TrackedRequest]:
    """The slices that may be stopped; `sticky_after` = None where yielding spares nobody.

    Who yields also drops a chunk of a prompt: in the engine's queue it would join the arrival's own iteration.
    """
    return [
        tracked
        for tracked in residents
        if tracked.state is RequestState.RUNNING
        and (tracked.request.resumable or tracked.fills_cache)
        and not tracked.reserved
        and (not is_ending(tracked, soon_tokens) or (sticky_after is None and tracked.fills_cache))
        and (sticky_after is None or tracked.preemptions < sticky_after)
    ]


def cheapest_first(tracked_requests: Iterable[TrackedRequest], hit: float, quantum_tokens: int) -> list[TrackedRequest]:
    """Those first whose stop wastes least; of equals, those that would have held their slot longest.

    A slice that has not yet given `quantum_tokens` comes last, or it would never get anywhere.
    """

    def cost(tracked: TrackedRequest) -> tuple[bool, float, int, int]:
        context = tracked.context_tokens + tracked.streamed_tokens
        wasted = context * (1 - hit)
        held = tracked.budget_tokens - tracked.streamed_tokens
        return tracked.streamed_tokens < quantum_tokens, wasted, -held, -tracked.sequence

    return sorted(tracked_requests, key=cost)


def until_free(victims: Iterable[TrackedRequest], slots: int, kv_tokens: float) -> list[TrackedRequest]:
    """The first of `victims` whose slots and KV tokens cover what is missing; all of them if they do not."""
    chosen = []
    for tracked in victims:
        if slots <= 0 and kv_tokens <= 0:
            break
        chosen.append(tracked)
        slots -= tracked.request.slots
        kv_tokens -= tracked.kv_tokens
    return chosen
