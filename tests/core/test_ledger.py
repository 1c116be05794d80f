"""The books of one engine: what we hold, what others take, what is left to online."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from sidecar.core.events import Arrived, EngineUp, Finished, Measured
from sidecar.core.ledger import Ledger
from sidecar.core.request import Lane
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.tracked_request import TrackedRequest
from tests.core.builders import offline, online


def _ledger(kv_tokens: int = 1000) -> Ledger:
    return Ledger.of(EngineSettings(name="e", kv_tokens=kv_tokens, kv_block_tokens=32), SchedulerSettings())


def _scrape(active: int, used: int, *, ok: bool = True) -> Measured:
    blocks = {"kv_blocks_max": 100, "kv_blocks_free": 100 - used, "tokens_per_block": 32}
    return Measured(engine="e", ok=ok, active_requests=active, **blocks)


def test_a_hold_is_rounded_up_to_blocks_and_gives_its_prefill_back_with_the_first_token() -> None:
    ledger, tracked = _ledger(), TrackedRequest(offline("b"), 1, 0.0)
    ledger.hold(tracked, 65, 40)
    assert (ledger.kv_tokens, ledger.prefill_tokens[Lane.OFFLINE]) == (96, 40)
    assert ledger.lease(tracked)
    assert not ledger.lease(tracked)
    assert (ledger.kv_tokens, ledger.prefill_tokens[Lane.OFFLINE]) == (96, 0)
    assert ledger.release(tracked) == 96


def test_load_counts_as_foreign_when_three_scrapes_in_a_row_show_it() -> None:
    ledger = _ledger()
    seen = []
    for active in (5, 9, 6, 2):
        ledger.measured(_scrape(active, 10), slots_ours=2, offline_slots=1)
        seen.append((ledger.foreign_slots, ledger.foreign_kv_tokens))
    assert seen == [(0, 0), (0, 0), (3, 320), (0, 320)]
    assert ledger.kv_tokens_free == 680


def test_a_failing_scrape_freezes_offline_and_a_good_one_thaws_it() -> None:
    ledger = _ledger()
    for offline_slots in (3, 5):
        ledger.measured(_scrape(0, 0, ok=False), slots_ours=5, offline_slots=offline_slots)
    assert ledger.offline_slots_max == 3
    ledger.measured(_scrape(0, 0), slots_ours=5, offline_slots=5)
    assert ledger.offline_slots_max == inf


def test_the_load_of_others_is_known_only_while_gauges_tell_of_it() -> None:
    ledger = _ledger()
    known = [ledger.foreign_known]
    for scrape in (_scrape(5, 10), _scrape(5, 10, ok=False), _scrape(5, 10), Measured(engine="e", ok=True)):
        ledger.measured(scrape, slots_ours=0, offline_slots=0)
        known.append(ledger.foreign_known)
    assert known == [False, True, False, True, False]
    assert (ledger.foreign_slots, ledger.foreign_kv_tokens) == (0, 0)


def test_the_gauges_tell_the_size_of_the_cache_where_the_settings_do_not() -> None:
    ledger = _ledger(kv_tokens=0)
    assert ledger.guard_tokens(1) == 0
    ledger.measured(_scrape(0, 0), slots_ours=0, offline_slots=0)
    assert ledger.kv_tokens_max == 3200


def test_the_guard_follows_what_online_needs_inside_its_band() -> None:
    ledger = _ledger()
    assert ledger.guard_tokens(1) == 50
    for number in range(200):
        ledger.hold(TrackedRequest(online(f"a{number}"), number, 0.0), 100, 0)
    assert ledger.guard_tokens(1) == pytest.approx(128)
    assert ledger.guard_tokens(2) == pytest.approx(256)
    assert ledger.guard_tokens(9) == 300


def test_a_size_of_nothing_is_no_size_and_a_later_one_counts() -> None:
    ledger = _ledger(kv_tokens=0)
    for blocks, expected in ((0, inf), (100, 3200.0), (0, 3200.0), (50, 1600.0), (400, 12800.0)):
        event = Measured(engine="e", ok=True, active_requests=0, kv_blocks_max=blocks, kv_blocks_free=blocks)
        ledger.measured(event, slots_ours=0, offline_slots=0)
        assert ledger.kv_tokens_max == expected
    assert ledger.foreign_kv_tokens == 0


def test_the_size_of_a_block_is_the_engines() -> None:
    ledger = _ledger(kv_tokens=0)
    assert ledger.need(33) == 64
    scrape = Measured(engine="e", ok=True, kv_blocks_max=10, kv_blocks_free=10, tokens_per_block=64)
    ledger.measured(scrape, slots_ours=0, offline_slots=0)
    assert (ledger.block_tokens, ledger.kv_tokens_max, ledger.need(65)) == (64, 640.0, 128)
    ledger.measured(Measured(engine="e", ok=True, tokens_per_block=0), slots_ours=0, offline_slots=0)
    assert ledger.block_tokens == 64


def test_nothing_is_refused_for_a_size_that_a_single_scrape_showed() -> None:
    scheduler = Scheduler(SchedulerSettings(), [EngineSettings(name="e", tokens_max=1000)])
    scheduler.handle(EngineUp(engine="e"), 0.0)

    def scrape(blocks: int, now_s: float) -> None:
        event = Measured(engine="e", ok=True, kv_blocks_max=blocks, kv_blocks_free=blocks, tokens_per_block=32)
        scheduler.handle(event, now_s)

    def refused(request_id: str, now_s: float) -> bool:
        request = replace(offline(request_id), prompt_tokens=100, output_tokens_max=100)
        found = scheduler.handle(Arrived(request=request), now_s)
        return any(isinstance(each, Finished) for each in found)

    scrape(0, 1.0)
    scrape(1, 2.0)
    assert not refused("a", 3.0)
    scrape(1, 4.0)
    scrape(1, 5.0)
    assert refused("b", 6.0)
    for now_s in (7.0, 8.0, 9.0):
        scrape(1000, now_s)
    assert not refused("c", 10.0)
