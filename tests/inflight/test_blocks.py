"""The paged KV cache: what is found again, what is evicted first, and that no block is lost."""

from __future__ import annotations

from random import Random

import pytest

from sidecar.inflight.blocks import RETENTION_DEFAULT, Block, BlockPool, Ids, Retention, RetentionRange


def begin(pool: BlockPool, ids: Ids, now_s: float = 0.0) -> tuple[list[Block], int]:
    """Hold blocks for all of `ids`; also how many of its tokens were found."""
    match = pool.match(ids)
    blocks, _ = pool.take(match, now_s)
    while len(blocks) * pool.tokens_per_block < len(ids):
        blocks.append(pool.allocate(now_s))
    return blocks, match.tokens(pool.tokens_per_block)


def leave(pool: BlockPool, ids: Ids, priority: int = 35, duration_s: float = float("inf"), now_s: float = 0.0) -> None:
    """A sequence that came, held blocks for `ids`, and left them for reuse."""
    retention = Retention(ranges=(RetentionRange(token_start=0, priority=priority, duration_s=duration_s),))
    blocks, tokens = begin(pool, ids, now_s)
    pool.store(blocks, tokens // pool.tokens_per_block, ids, retention, len(ids), now_s)
    pool.release_all(blocks)


def found(pool: BlockPool, ids: Ids) -> int:
    return pool.match(ids).tokens(pool.tokens_per_block)


A, B, C = (1,) * 8, (2,) * 8, (3,) * 8


def test_a_prefix_is_found_block_by_block_and_the_last_token_is_left_to_compute() -> None:
    pool = BlockPool(8, 4)
    leave(pool, A + B[:4])
    assert found(pool, A + B) == 12
    assert found(pool, A) == 7
    assert found(pool, A[:5]) == 4
    assert found(pool, B) == 0


def test_of_a_block_that_differs_the_common_tokens_are_found() -> None:
    pool = BlockPool(8, 4)
    leave(pool, (1, 2, 3, 4, 5, 6, 7, 8))
    assert found(pool, (1, 2, 3, 4, 5, 6, 9, 9, 9)) == 6


def test_the_last_partial_block_is_found_too() -> None:
    pool = BlockPool(8, 4)
    leave(pool, (1, 2, 3, 4, 5, 6))
    assert found(pool, (1, 2, 3, 4, 5, 6, 7)) == 6


def test_a_partial_block_that_nobody_holds_is_taken_in_place() -> None:
    pool = BlockPool(8, 4)
    leave(pool, (1, 2, 3, 4, 5, 6))
    match = pool.match((1, 2, 3, 4, 5, 6, 7))
    blocks, copy = pool.take(match, 0.0)
    assert (blocks, copy) == ([*match.blocks, match.partial], None)


def test_a_partial_block_that_somebody_holds_is_copied() -> None:
    pool = BlockPool(8, 4)
    first, _ = begin(pool, (1, 2, 3, 4))
    pool.store(first, 0, (1, 2, 3, 4), RETENTION_DEFAULT, 4, 0.0)
    match = pool.match((1, 2, 9, 9))
    blocks, copy = pool.take(match, 0.0)
    assert copy == (first[0].index, blocks[0].index)
    assert match.partial_tokens == 2


def test_without_reuse_nothing_is_found_and_nothing_kept() -> None:
    pool = BlockPool(8, 4, reuse=False)
    leave(pool, A)
    assert (found(pool, A), pool.cached, pool.free) == (0, 0, 8)


def test_blank_blocks_are_used_before_cached_ones_are_evicted() -> None:
    pool = BlockPool(4, 4)
    leave(pool, A)
    begin(pool, B)
    assert found(pool, A + A) == 8


def test_the_least_recently_released_goes_first_and_leaves_before_what_they_hang_from() -> None:
    pool = BlockPool(4, 4)
    leave(pool, A)
    leave(pool, B)
    leave(pool, A)
    order = []
    for _ in range(4):
        order.append((found(pool, (*A, 9)), found(pool, (*B, 9))))
        pool.allocate(0.0)
    assert order == [(8, 8), (8, 4), (8, 0), (4, 0)]


def test_lower_priority_goes_first_however_recent() -> None:
    pool = BlockPool(4, 4)
    leave(pool, A, priority=50)
    leave(pool, B, priority=10)
    pool.allocate(0.0)
    assert (found(pool, (*A, 9)), found(pool, (*B, 9))) == (8, 4)


def test_a_retention_that_is_over_counts_as_the_default_again() -> None:
    pool = BlockPool(4, 4)
    leave(pool, A, priority=90, duration_s=10.0)
    leave(pool, B, priority=40)
    assert [block.ids[0] for block in pool.eviction_order()] == [2, 1]
    pool.allocate(11.0)
    assert (found(pool, (*A, 9)), found(pool, (*B, 9))) == (4, 8)


def test_the_first_token_of_a_block_decides_its_retention() -> None:
    retention = Retention(ranges=(RetentionRange(token_start=4, token_end=8, priority=80),), decode_priority=5)
    assert [retention.at(token, 12)[0] for token in (0, 4, 8, 12)] == [35, 80, 35, 5]


def test_what_two_computed_at_once_is_kept_once() -> None:
    pool = BlockPool(8, 4)
    first, second = begin(pool, A)[0], begin(pool, A)[0]
    pool.store(first, 0, A, RETENTION_DEFAULT, 8, 0.0)
    pool.store(second, 0, A, RETENTION_DEFAULT, 8, 0.0)
    assert second == first
    assert pool.free == 6


def test_a_full_pool_says_so() -> None:
    pool = BlockPool(2, 4)
    begin(pool, A)
    with pytest.raises(MemoryError, match="all 2 KV blocks are held"):
        pool.allocate(0.0)


@pytest.mark.parametrize(
    "wrong", [{"token_start": -1}, {"token_start": 4, "token_end": 4}, {"token_start": 0, "priority": 101}]
)
def test_a_nonsense_range_cannot_be_built(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="retention range"):
        RetentionRange(**wrong)


def test_no_block_is_lost_or_held_twice_in_a_random_load() -> None:
    for seed in range(30):
        random, pool = Random(seed), BlockPool(24, 4)
        running: list[tuple[list[Block], int, Ids]] = []
        for now_s in range(200):
            if random.random() < 0.5 and pool.free >= 6:
                ids = tuple(random.choices((1, 2), k=random.randrange(1, 24)))
                running.append((*begin(pool, ids, now_s), ids))
            elif running:
                blocks, tokens, ids = running.pop(random.randrange(len(running)))
                span = RetentionRange(token_start=0, priority=random.randrange(99), duration_s=9.0)
                computed = ids[: random.randrange(tokens, len(ids) + 1)]
                pool.store(blocks, tokens // 4, computed, Retention(ranges=(span,)), len(ids), now_s)
                pool.release_all(blocks)
            own = [block.index for blocks, _, _ in running for block in blocks if block.refs == 1]
            assert len(own) == len(set(own))
            held = {block.index for blocks, _, _ in running for block in blocks}
            assert pool.free == 24 - len(held)
        while pool.free:
            pool.allocate(999.0)
        assert pool.cached == 0
