"""Who is stopped for online work: the least waste, and never a turn, nor what ends by itself."""

from __future__ import annotations

from typing import Any

from sidecar.core.item import Item, State
from sidecar.core.preemption import candidates, cheapest_first, until_free
from tests.core.builders import offline


def _item(name: str, sequence: int, *, resumable: bool = True, **fields: Any) -> Item:
    running: dict[str, Any] = {"state": State.RUNNING, "budget_tokens": 100, "streamed_tokens": 40, **fields}
    return Item(offline(name, resumable=resumable), sequence, 0.0, **running)


def _names(items: list[Item]) -> list[str]:
    return [item.work.id for item in items]


def test_turns_last_tokens_pieces_of_prompts_sticky_and_whole_items_are_spared() -> None:
    residents = [
        _item("plain", 1),
        _item("turn", 2, turn=True),
        _item("ending", 3, streamed_tokens=99),
        _item("piece", 4, prompt_tokens=64, budget_tokens=1, streamed_tokens=0),
        _item("sticky", 5, preemptions=3),
        _item("whole", 6, resumable=False),
        _item("stopped", 7, state=State.PREEMPTING),
    ]
    assert _names(candidates(residents, soon_tokens=1, sticky_after=3)) == ["plain"]
    assert _names(candidates(residents, soon_tokens=1, sticky_after=None)) == ["plain", "piece", "sticky"]


def test_the_young_come_last_and_of_equals_who_would_hold_its_slot_longest_first() -> None:
    items = [_item("late", 1, streamed_tokens=90), _item("young", 2, streamed_tokens=3), _item("early", 3)]
    assert _names(cheapest_first(items, hit=1.0, quantum_tokens=16)) == ["early", "late", "young"]


def test_where_the_cache_forgets_the_shortest_context_is_the_cheapest() -> None:
    items = [_item("long", 1, generated_tokens=900), _item("short", 2, streamed_tokens=90)]
    assert _names(cheapest_first(items, hit=0.5, quantum_tokens=16)) == ["short", "long"]


def test_no_more_are_stopped_than_slots_and_kv_ask_for() -> None:
    items = [_item(name, number, kv_tokens=100) for number, name in enumerate("abc")]
    assert _names(until_free(items, slots=1, kv_tokens=0)) == ["a"]
    assert _names(until_free(items, slots=1, kv_tokens=150)) == ["a", "b"]
    assert until_free(items, slots=0, kv_tokens=0) == []
