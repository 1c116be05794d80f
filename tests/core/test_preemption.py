"""Who is stopped for online work: the least waste, and never a reserved dispatch, nor what ends by itself."""

from __future__ import annotations

from typing import Any

from sidecar.core.preemption import candidates, cheapest_first, until_free
from sidecar.core.tracked_request import RequestState, TrackedRequest
from tests.core.builders import offline


def _tracked(name: str, sequence: int, *, resumable: bool = True, **fields: Any) -> TrackedRequest:
    running: dict[str, Any] = {"state": RequestState.RUNNING, "budget_tokens": 100, "streamed_tokens": 40, **fields}
    return TrackedRequest(offline(name, resumable=resumable), sequence, 0.0, **running)


def _names(tracked_requests: list[TrackedRequest]) -> list[str]:
    return [tracked.request.id for tracked in tracked_requests]


def test_reserved_dispatches_last_tokens_chunks_of_prompts_sticky_and_whole_items_are_spared() -> None:
    residents = [
        _tracked("plain", 1),
        _tracked("reserved", 2, reserved=True),
        _tracked("ending", 3, streamed_tokens=99),
        _tracked("chunk", 4, prompt_tokens=64, budget_tokens=1, streamed_tokens=0),
        _tracked("sticky", 5, preemptions=3),
        _tracked("whole", 6, resumable=False),
        _tracked("stopped", 7, state=RequestState.PREEMPTING),
    ]
    assert _names(candidates(residents, soon_tokens=1, sticky_after=3)) == ["plain"]
    assert _names(candidates(residents, soon_tokens=1, sticky_after=None)) == ["plain", "chunk", "sticky"]


def test_the_young_come_last_and_of_equals_who_would_hold_its_slot_longest_first() -> None:
    tracked_requests = [
        _tracked("late", 1, streamed_tokens=90),
        _tracked("young", 2, streamed_tokens=3),
        _tracked("early", 3),
    ]
    assert _names(cheapest_first(tracked_requests, hit=1.0, quantum_tokens=16)) == ["early", "late", "young"]


def test_where_the_cache_forgets_the_shortest_context_is_the_cheapest() -> None:
    tracked_requests = [_tracked("long", 1, generated_tokens=900), _tracked("short", 2, streamed_tokens=90)]
    assert _names(cheapest_first(tracked_requests, hit=0.5, quantum_tokens=16)) == ["short", "long"]


def test_no_more_are_stopped_than_slots_and_kv_ask_for() -> None:
    tracked_requests = [_tracked(name, number, kv_tokens=100) for number, name in enumerate("abc")]
    assert _names(until_free(tracked_requests, slots=1, kv_tokens=0)) == ["a"]
    assert _names(until_free(tracked_requests, slots=1, kv_tokens=150)) == ["a", "b"]
    assert until_free(tracked_requests, slots=0, kv_tokens=0) == []
