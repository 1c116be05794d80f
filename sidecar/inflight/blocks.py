"""The paged KV cache: who holds which block, what can be reused, what is evicted first.

Blocks of `tokens_per_block` tokens hang in a tree: a path from the root spells the tokens whose keys and values it
holds, so equal prefixes are found by walking down. A block is *held* while a sequence reads it and *cached* while it
is in the tree and nobody holds it; cached blocks count as free, because they are evicted when a block is wanted.
Ids are only compared, never interpreted. Rules, from TensorRT-LLM's kvCacheManager.cpp and its KV cache reuse page:

- a sequence leaves `tokens - 1` tokens behind for reuse, the last partial block included, also when it was stopped;
- full prompt blocks become reusable as soon as the prompt is computed, not only at the end;
- of a block that matches only in part, the matching tokens are copied, or taken in place if nobody else needs it;
- only leaves are evicted: lowest retention priority first, within a priority the least recently released;
- a retention priority whose duration has passed falls back to the default, 35.

Two inferences of ours: blank blocks are used up before anything cached is evicted, and a block that was computed
twice at once is kept once (upstream keeps both until the second sequence ends).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count, islice
from math import inf

PRIORITY_DEFAULT = 35  # KvCacheRetentionConfig::kDefaultRetentionPriority
PARTIAL_CANDIDATES_MAX = 16  # upstream compares with every child; the newest few find the same in all but odd cases

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRange:
    """Blocks that start in `token_start` ≤ token < `token_end` of the prompt are kept with `priority`, 0 to 100."""

    token_start: int
    token_end: float = inf
    priority: int = PRIORITY_DEFAULT
    duration_s: float = inf

    def __post_init__(self) -> None:
        if not 0 <= self.token_start < self.token_end or not 0 <= self.priority <= 100 or self.duration_s < 0:
            raise ValueError(f"a retention range needs 0 <= start < end, priority in 0..100 and duration >= 0: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long a request's blocks are kept for reuse after it (KvCacheRetentionConfig)."""

    ranges: tuple[RetentionRange, ...] = ()
    decode_priority: int = PRIORITY_DEFAULT
    decode_duration_s: float = inf

    def __post_init__(self) -> None:
        if not 0 <= self.decode_priority <= 100 or self.decode_duration_s < 0:
            raise ValueError(f"retention needs decode_priority in 0..100 and decode_duration_s >= 0: {self}")

    def at(self, token: int, prompt_tokens: int) -> tuple[int, float]:
        """Priority and duration of the block that starts at `token`; its first token decides, as upstream."""
        if token >= prompt_tokens:
            return self.decode_priority, self.decode_duration_s
        for span in self.ranges:
            if span.token_start <= token < span.token_end:
                return span.priority, span.duration_s
        return PRIORITY_DEFAULT, inf


RETENTION_DEFAULT = Retention()


class Block:
    """One block of the cache. `index` is its place in the engine's key and value arrays."""

    __slots__ = ("children", "expires_s", "ids", "index", "parent", "priority", "refs", "stamp")

    def __init__(self, index: int) -> None:
        self.index = index
        self.ids: Ids = ()  # what it holds, once it is in the tree
        self.parent: Block | None = None
        self.children: dict[int, dict[Ids, Block]] = {}  # by first id, so that a partial match looks at few
        self.refs = 0
        self.priority = PRIORITY_DEFAULT
        self.expires_s = inf
        self.stamp = 0  # of the last release: the order of eviction within a priority

    @property
    def evictable(self) -> bool:
        return self.refs == 0 and self.parent is not None and not self.children

    def __repr__(self) -> str:
        return f"<block {self.index}: {len(self.ids)} ids, held by {self.refs}, priority {self.priority}>"


@dataclass(frozen=True, slots=True)
class Match:
    """The longest reusable prefix of a prompt: whole blocks, then `partial_tokens` of one more."""

    blocks: list[Block]
    partial: Block | None
    partial_tokens: int

    def tokens(self, tokens_per_block: int) -> int:
        return len(self.blocks) * tokens_per_block + self.partial_tokens


class BlockPool:
    """All blocks of one engine."""

    def __init__(self, blocks_max: int, tokens_per_block: int, reuse: bool = True) -> None:
        self.blocks_max = blocks_max
        self.tokens_per_block = tokens_per_block
        self.reused_blocks = 0  # hits since the start, the gauge's habit
        self.allocated_blocks = 0
        self._reuse = reuse
        self._root = Block(-1)
        self._fresh = 0  # blocks never used yet have the indices from here on
        self._blank: list[Block] = []  # given back without content
        self._cached = 0
        self._stamps = count(1)
        self._evictable: list[tuple[int, int, Block]] = []  # heap with stale entries; `_valid` tells
        self._expiring: list[tuple[float, int, Block]] = []

    @property
    def free(self) -> int:
        """Blocks that could be allocated now; cached ones count, as in upstream's gauge."""
        return self.blocks_max - self._fresh + len(self._blank) + self._cached

    @property
    def cached(self) -> int:
        """Blocks that hold reusable content and that no sequence holds."""
        return self._cached

    def match(self, ids: Ids) -> Match:
        """The reusable prefix of the prompt `ids`; at least its last token is left to compute."""
        size, node = self.tokens_per_block, self._root
        blocks: list[Block] = []
        usable = len(ids) - 1 if self._reuse else 0
        start = 0
        while start + size <= usable:
            key = ids[start : start + size]
            siblings = node.children.get(key[0])
            found = siblings.get(key) if siblings else None
            if found is None:
                break
            blocks.append(found)
            node = found
            start += size
        return Match(blocks, *_longest_common(node, ids[start : min(start + size, usable)]))

    def take(self, match: Match, now_s: float) -> tuple[list[Block], tuple[int, int] | None]:
        """Hold the blocks of `match`; also the copy (from index, to index) that the partial block needs, if any."""
        for block in match.blocks:  # as `_hold` does it, without a call for each
            self._cached -= block.refs == 0
            block.refs += 1
        self.reused_blocks += len(match.blocks) + (match.partial is not None)
        if match.partial is None:
            return list(match.blocks), None
        if match.partial.evictable:  # nobody else needs it: take it out of the tree and go on writing in it
            block = match.partial
            self._hold(block)
            self._detach(block)
            return [*match.blocks, block], None
        # The source may be evicted and given out again by this very allocation; copies run before anything is
        # computed and in the order they were made, so its content is still there when the copy runs.
        block = self.allocate(now_s)
        return [*match.blocks, block], (match.partial.index, block.index)

    def allocate(self, now_s: float) -> Block:
        """A block of its own for one sequence, evicting a cached one if none is blank. Raises MemoryError if full."""
        self.allocated_blocks += 1
        if self._blank:
            block = self._blank.pop()
        elif self._fresh < self.blocks_max:
            block = Block(self._fresh)
            self._fresh += 1
        else:
            block = self._evict(now_s)
        block.refs = 1
        return block

    def store(self, blocks: list[Block], begin: int, ids: Ids, retention: Retention, prompt: int, now_s: float) -> int:
        """Put the blocks from `begin` on into the tree under `ids`; the number of blocks that are in it now.

        `blocks` are one sequence's, in order; the first `begin` are in the tree. Where an equal block is there
        already, `blocks` gets that one instead. A last block that `ids` fills only in part is stored too.
        """
        if not self._reuse:
            return 0
        size = self.tokens_per_block
        node = blocks[begin - 1] if begin else self._root
        for place, start in enumerate(range(begin * size, len(ids), size), begin):
            key = ids[start : start + size]
            siblings = node.children.get(key[0])
            known = siblings.get(key) if siblings else None
            if known is None:
                known = blocks[place]
                known.ids, known.parent = key, node
                if siblings is None:
                    node.children[key[0]] = {key: known}
                else:
                    siblings[key] = known
            else:
                self._hold(known)
                self.release(blocks[place])
                blocks[place] = known
            node = known
        stored = -(-len(ids) // size)
        self.retain(blocks[:stored], retention, prompt, now_s, begin)
        return stored

    def release_all(self, blocks: list[Block]) -> None:
        """Let one sequence's blocks go, last first, so that leaves are older than what they hang from."""
        while blocks:
            block = blocks.pop()
            block.refs -= 1
            if block.refs:
                continue
            if block.parent is None:
                self._blank.append(block)
                continue
            self._cached += 1
            block.stamp = next(self._stamps)
            if not block.children:  # most hang above others: asked here, since this runs for each block of a sequence
                self._offer(block)

    def release(self, block: Block) -> None:
        """One holder less. Without a holder the block is cached if it is in the tree, else blank."""
        self.release_all([block])

    def retain(self, blocks: list[Block], retention: Retention, prompt: int, now_s: float, begin: int = 0) -> None:
        """Keep one sequence's blocks from `begin` on as its request wants it; reused ones too (as claimBlock does)."""
        if retention is RETENTION_DEFAULT:  # nearly always
            for block in blocks[begin:]:
                block.priority, block.expires_s = PRIORITY_DEFAULT, inf
            return
        for place, block in enumerate(blocks[begin:], begin):
            block.priority, duration_s = retention.at(place * self.tokens_per_block, prompt)
            block.expires_s = now_s + duration_s
            if duration_s < inf:
                heappush(self._expiring, (block.expires_s, next(self._stamps), block))

    def eviction_order(self) -> Iterator[Block]:
        """The blocks that can be evicted now, first victim first (for tests and transcripts)."""
        return (block for _, _, block in sorted(entry for entry in self._evictable if _valid(*entry)))

    def _hold(self, block: Block) -> None:
        self._cached -= block.refs == 0
        block.refs += 1

    def _detach(self, block: Block) -> None:
        """Take a leaf out of the tree; its parent may become a leaf by it."""
        parent = block.parent
        assert parent is not None
        assert not block.children
        siblings = parent.children[block.ids[0]]
        del siblings[block.ids]
        if not siblings:
            del parent.children[block.ids[0]]
        block.parent, block.ids = None, ()
        self._offer(parent)

    def _offer(self, block: Block) -> None:
        if block.evictable:
            heappush(self._evictable, (block.priority, block.stamp, block))
        if len(self._evictable) > 4 * self.blocks_max + 64:  # mostly stale entries of blocks that were used again
            self._evictable = [entry for entry in self._evictable if _valid(*entry)]
            heapify(self._evictable)

    def _evict(self, now_s: float) -> Block:
        """The block that goes first, without its content. Raises MemoryError if every block is held."""
        while self._expiring and self._expiring[0][0] <= now_s:
            expires_s, _, block = heappop(self._expiring)
            if block.expires_s == expires_s and block.parent is not None:
                block.priority, block.expires_s = PRIORITY_DEFAULT, inf
                self._offer(block)
        while self._evictable:
            entry = heappop(self._evictable)
            if _valid(*entry):
                self._cached -= 1
                self._detach(entry[2])
                return entry[2]
        raise MemoryError(f"all {self.blocks_max} KV blocks are held")


def _valid(priority: int, stamp: int, block: Block) -> bool:
    return block.evictable and block.stamp == stamp and block.priority == priority


def _longest_common(node: Block, key: Ids) -> tuple[Block | None, int]:
    """The child of `node` that shares the most leading ids with `key`, and how many."""
    best: tuple[Block | None, int] = (None, 0)
    siblings = node.children.get(key[0], {}) if key else {}
    for ids, block in islice(reversed(siblings.items()), PARTIAL_CANDIDATES_MAX):
        common = _common(ids, key)
        if common > best[1]:
            best = block, common
    return best


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    if left[: len(right)] == right:
        return len(right)
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))
