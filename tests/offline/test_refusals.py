"""A record that its topic will not take ends as a dead letter, however it was found; its neighbours are committed."""

from __future__ import annotations

import pytest

from sidecar.offline.refusals import Refusals, WrittenForm


def commits_of(bad: set[int], count: int) -> list[list[int]]:
    """The transactions by which these finished items become committed, or are found out."""
    refusals, sizes, tried = Refusals(), dict.fromkeys(range(count), 10), []
    while sizes:
        batch = refusals.choose(sizes, 1 << 20, 0.0)
        tried.append(batch)
        if bad.isdisjoint(batch):
            refusals.passed(batch)
            sizes = {offset: size for offset, size in sizes.items() if offset not in batch}
        elif (culprit := refusals.refused(batch, batch)) is not None:
            bad.remove(culprit)
    return tried


def test_what_was_refused_is_halved_down_to_the_one_and_each_half_that_passes_is_committed() -> None:
    assert commits_of({5}, 8) == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3],
        [4, 5],
        [4],
        [5],
        [5, 6, 7],
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_one_of_many_is_found_in_few_transactions(count: int) -> None:
    most = max(len(commits_of({at}, count)) for at in range(count))
    assert most <= 2 * count.bit_length() + 2


def test_parts_that_all_pass_bound_the_next_transactions() -> None:
    refusals, sizes = Refusals(), dict.fromkeys(range(100), 10)
    batch = refusals.choose(sizes, 1 << 20, 0.0)
    assert refusals.refused(batch, batch) is None
    while refusals.suspects:
        refusals.passed(refusals.choose(sizes, 1 << 20, 0.0))
    assert len(refusals.choose(sizes, 1 << 20, 0.0)) == 50


def test_a_transaction_is_bounded_in_bytes_but_holds_one_item_at_least() -> None:
    refusals = Refusals()
    assert refusals.choose({0: 600, 1: 300, 2: 200}, 1000, 0.0) == [0, 1]
    assert refusals.choose({0: 5000, 1: 300}, 1000, 0.0) == [0]


def test_a_dead_letter_becomes_shorter_and_then_waits() -> None:
    refusals = Refusals()
    assert [refusals.shorter(3, 30.0) for _ in range(3)] == [WrittenForm.CUT, WrittenForm.BARE, None]
    assert refusals.choose({3: 10, 4: 10}, 1000, 0.0) == [4]
    assert refusals.choose({3: 10}, 1000, 0.0) == []
    assert refusals.choose({3: 10, 4: 10}, 1000, 30.0) == [4]
    assert refusals.choose({3: 10}, 1000, 30.0) == [3]
