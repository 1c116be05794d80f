"""What an in-flight batch is made of: an engine's shape, the requests, their rows, and what one iteration does."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from sidecar.inflight.blocks import RETENTION_DEFAULT, Block, Ids, Retention

BlockKey: TypeAlias = tuple[Block | None, Ids]  # a block's parent in the reuse tree, and its ids


class CapacityPolicy(StrEnum):
    """What a request must be sure of before it starts (`batch_scheduler_policy`)."""

    GUARANTEED_NO_EVICT = "guaranteed_no_evict"
    MAX_UTILIZATION = "max_utilization"


class End(StrEnum):
    """Why a row left the batch for good."""

    END_ID = "end_id"
    STOP_WORD = "stop_word"
    LENGTH = "length"
    STOPPED = "stopped"  # by a stop or a cancellation


class RequestError(ValueError):
    """A request that this engine can never run. The message carries the values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherSettings:
    """The shape of an engine: what trtllm-build and config.pbtxt fix. Units: sequences, tokens, seconds."""

    max_batch_size: int = 64
    max_num_tokens: int = 8192  # per iteration, decode and prefill together (trtllm-build's default)
    max_seq_len: int = 16384  # prompt + output of one sequence
    max_input_len: int | None = None  # prompt of one sequence; None = all but one token of max_seq_len
    kv_tokens_max: int = 450_000  # max_tokens_in_paged_kv_cache
    tokens_per_block: int = 32
    chunked_context: bool = True
    kv_cache_reuse: bool = True
    policy: CapacityPolicy = CapacityPolicy.GUARANTEED_NO_EVICT
    cancellation_check_period_s: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch_size <= self.max_num_tokens:
            raise ValueError(f"max_batch_size must be in 1..max_num_tokens ({self.max_num_tokens}): {self}")
        if self.tokens_per_block < 1 or self.kv_tokens_max < self.tokens_per_block or self.max_seq_len < 2:
            raise ValueError(f"tokens_per_block >= 1, kv_tokens_max >= one block and max_seq_len >= 2 needed: {self}")
        if self.cancellation_check_period_s < 0:
            raise ValueError(f"cancellation_check_period_s must be >= 0: {self}")

    @property
    def prompt_tokens_max(self) -> int:
        return self.max_seq_len - 1 if self.max_input_len is None else min(self.max_input_len, self.max_seq_len - 1)

    @property
    def blocks_max(self) -> int:
        return self.kv_tokens_max // self.tokens_per_block


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchedSequence:
    """One sequence to generate."""

    id: str  # unique while in flight
    prompt_ids: Ids
    output_tokens_max: int
    retention: Retention = RETENTION_DEFAULT
    ends_after: int | None = None  # for a simulator: the end id is the output token with this number, from 1
    output_key: int = 0  # for a simulator: stands for every generated id

    def __post_init__(self) -> None:
        if not self.prompt_ids or self.output_tokens_max < 1 or (self.ends_after is not None and self.ends_after < 1):
            raise RequestError(f"request {self.id}: needs a prompt, output_tokens_max >= 1 and ends_after >= 1 if any")


class RowState(StrEnum):
    """Where a row is. QUEUED → ACTIVE → CONTEXT → GENERATION → ENDED; a pause leads back to ACTIVE."""

    QUEUED = "queued"  # in the executor's queue: not active, in no gauge
    ACTIVE = "active"  # counted, but without KV: the gauges' `waiting`
    CONTEXT = "context"
    GENERATION = "generation"
    ENDED = "ended"


@dataclass(eq=False, slots=True)
class Row:
    """One request in the engine. Read it freely; only the batcher changes it. Times are the driver's."""

    request: BatchedSequence
    order: int  # of arrival
    arrived_s: float
    prompt_ids: Ids  # of the current run: after a pause also what was generated before
    state: RowState = RowState.QUEUED
    computed_tokens: int = 0  # of the current run's prompt, reused ones included
    blocks: list[Block] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)  # stays empty in a simulation
    generated_tokens: int = 0  # settled at a pause and at the end; see Batcher.generated_tokens
    end: End | None = None
    reused_tokens: int = 0  # of the first run, like the other figures for the client
    reused_blocks: int = 0
    new_blocks: int = 0  # allocated blank for the prompt
    total_blocks: int = 0  # allocated for the prompt, the copy of a partly reused block included
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    stored_blocks: int = 0  # leading blocks that are in the reuse tree
    coming: BlockKey | None = None  # the first block that it computes, for others to wait for
    run: int = 0  # counts pauses, so that stale entries of the heaps are known
    since: int = 0  # decode iterations of the batcher when generation began

    @property
    def id(self) -> str:
        return self.request.id

    def __repr__(self) -> str:
        return f"<row {self.id} {self.state} {self.computed_tokens}/{len(self.prompt_ids)}>"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens `begin` ≤ i < `begin + tokens` of a row, computed in one iteration."""

    row: Row
    begin: int
    tokens: int

    @property
    def last(self) -> bool:
        return self.begin + self.tokens == len(self.row.prompt_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One iteration. `decoding` rows give one token each, and so does each row whose last chunk is here."""

    decoding: tuple[Row, ...]
    chunks: tuple[Chunk, ...] = ()
    stopped: tuple[Row, ...] = ()  # left before it
    paused: tuple[Row, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()  # block contents to copy first: from index, to index
    prefill_tokens: int = 0

    @property
    def sampling(self) -> tuple[Row, ...]:
        """The rows that give a token, in the order in which `finish` wants the tokens."""
        return self.decoding + tuple(chunk.row for chunk in self.chunks if chunk.last)

    @property
    def empty(self) -> bool:
        """True if nothing is computed: only stopped rows are reported, and no time passes."""
        return not self.decoding and not self.chunks
