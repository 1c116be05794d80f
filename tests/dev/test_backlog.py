"""The toy's backlog: its formats, its stop words and its bad records, from a seed."""

from __future__ import annotations

import json

import pytest

from dev.backlog import BAD_RECORDS, OFFLINE_LIKE, records


def test_half_of_the_items_declare_a_stop_word_and_some_records_are_bad() -> None:
    values = [value for _, value in records(items=600, seed=1, stop_word=" so")]
    bad = [value for number, value in enumerate(values) if number % 100 == 99]
    good = [json.loads(value) for number, value in enumerate(values) if number % 100 != 99]
    bodies = [line.get("body", line) for line in good]

    assert set(bad) == set(BAD_RECORDS)
    assert len(bad) == 6
    assert sum("stop" in body for body in bodies) == pytest.approx(300, abs=10)
    assert all(body["prompt"].startswith(OFFLINE_LIKE) and body["max_tokens"] == 1024 for body in bodies)


def test_both_formats_come_and_each_partition_gets_items_with_and_without_a_stop_word() -> None:
    good = [json.loads(value) for _, value in records(items=99, seed=1, stop_word=" so")]
    assert {"body" in line for line in good} == {True, False}
    for partition in range(4):
        mine = good[partition::4]
        assert {"stop" in line.get("body", line) for line in mine} == {True, False}


def test_a_seed_has_its_own_prompts_each_time() -> None:
    def made(seed: int) -> list[tuple[bytes, bytes]]:
        return list(records(items=20, seed=seed, stop_word=" so"))

    assert made(1) == made(1) != made(2)
