"""The last quarter of an hour in steps: what a page that has just been opened shows of before."""

from __future__ import annotations

import random

import pytest

from sidecar.core.request import OFFLINE, ONLINE
from sidecar.telemetry.history import OTHERS, SAMPLES_MAX, STEP_S, STEPS, TENANTS_MAX, History, Samples


def test_samples_of_very_many_values_are_few_and_spread_over_all_of_them() -> None:
    samples, values = Samples(), list(range(50_000))
    for at in range(0, len(values), 7):
        samples.extend(values[at : at + 7])
    assert SAMPLES_MAX / 2 <= len(samples.values) <= SAMPLES_MAX
    gaps = {after - before for before, after in zip(samples.values, samples.values[1:], strict=False)}
    assert len(gaps) == 1
    assert samples.percentile(0.95) == pytest.approx(47_500, rel=0.01)


def test_a_percentile_is_a_value_that_was_seen_and_none_without_values() -> None:
    samples = Samples()
    assert samples.percentile(0.5) is None
    samples.extend(random.Random(1).sample(range(100), 100))
    assert (samples.percentile(0.5), samples.percentile(0.95), samples.percentile(1.0)) == (50, 95, 99)


def test_a_step_is_shown_once_it_is_over() -> None:
    history = History(100.0)
    history.streamed(101.0, [(ONLINE, "a", 10), (OFFLINE, "b", 30)], (0.02, 0.04))
    history.began(101.0, 0.1, 0.5)
    assert history.document(104.9)["online_tokens_per_s"] == []
    shown = history.document(106.0)
    assert shown["age_s"] == 1.0
    assert shown["online_tokens_per_s"] == [2.0]
    assert shown["offline_tokens_per_s"] == [6.0]
    assert shown["ttft_p95_ms"] == [100.0]
    assert shown["gap_p50_ms"] == [40.0]


def test_slots_are_counted_over_the_time_that_they_were_held_also_where_nothing_happens() -> None:
    history = History(0.0)
    history.slots(2.5, "e", ONLINE, 4)
    history.slots(10.0, "e", ONLINE, -4)
    history.slots(12.5, "e", OFFLINE, 2)
    shown = history.document(20.0)
    assert shown["online_slots"] == [2.0, 4.0, 0.0, 0.0]
    assert shown["offline_slots"] == [0.0, 0.0, 1.0, 2.0]
    shares = history.slot_shares(20.0, {"e": 4})
    assert shares["e"] == {ONLINE: pytest.approx(30 / 80), OFFLINE: pytest.approx(15 / 80)}


def test_what_was_not_measured_is_null_and_the_first_step_is_as_long_as_it_was() -> None:
    history = History(4.0)
    history.streamed(4.5, [(ONLINE, "a", 10)], ())
    shown = history.document(10.0)
    assert shown["ttft_p95_ms"] == [None, None]
    assert shown["online_tokens_per_s"] == [10.0, 0.0]


def test_it_holds_a_quarter_of_an_hour_and_no_more() -> None:
    history = History(0.0)
    for at in range(2 * STEPS):
        history.refused(at * STEP_S)
    shown = history.document(2 * STEPS * STEP_S)
    assert len(shown["refused"]) == STEPS - 1  # and the one of now
    assert set(shown["refused"]) == {1}


def test_the_last_minute_says_how_many_began_and_how_many_of_them_late() -> None:
    history = History(0.0)
    history.began(1.0, 9.0, 0.5)  # more than a minute ago
    for at in range(30, 100):
        history.began(float(at), 0.6 if at % 4 == 0 else 0.1, 0.5)
    history.refused(99.0)
    assert history.recent(100.0) == {
        "seconds": pytest.approx(55.0),
        "began": 55,  # from second 45 on: a step counts as a whole
        "late": 13,
        "refused": 1,
        "ttft_p95_ms": 600.0,
    }


def test_tenants_beyond_the_bound_count_together() -> None:
    history = History(0.0)
    names = [f"t{number}" for number in range(3 * TENANTS_MAX)]
    history.streamed(1.0, [(ONLINE, each, 1) for each in names], ())
    tokens = history.tokens()
    assert sum(tokens.values()) == len(names)
    assert tokens[ONLINE, OTHERS] == len(names) - (len(tokens) - 1)
    assert len(tokens) <= 2 * TENANTS_MAX + 1


def test_time_that_stands_still_or_goes_back_a_little_changes_nothing() -> None:
    history = History(10.0)
    history.slots(12.0, "e", ONLINE, 1)
    history.refused(11.0)
    history.slots(12.0, "e", ONLINE, -1)
    assert history.document(15.0)["online_slots"] == [0.0]
