"""An in-flight batcher that behaves as TensorRT-LLM's does wherever a scheduler outside can notice.

It decides who is in the next iteration, never what comes out of it: the numpy engine brings the token values, a
simulator only knows when the end comes. No clock, no randomness, no logits. The duties of a driver:

1. `add` requests as they come, `stop` them with the time from which the engine sees it (`next_check_s`).
2. `plan(now_s)` says what the next iteration does; None if there is nothing to do. Copy `copies`, in order, before
   computing. Rows in `stopped` have left the batch: nothing more comes of them.
3. `finish(step, now_s, …)` when the iteration is over, with the tokens of `step.sampling` and the rows that end by
   them; it returns the rows that ended, those that used up their output budget included.

A simulator gives each request `ends_after` (when the end id would come) and jumps many iterations at once. Ids are
only compared, so it may repeat one key for all tokens with the same content: `(prefix,) * 256 + (item,) * 40`.

    batcher = Batcher(BatcherSettings(max_batch_size=64))
    batcher.add(Request(id="a", prompt_ids=(7,) * 40, output_tokens_max=1024, ends_after=120, output_key=7), now_s=0.0)
    while step := batcher.plan(now_s):
        one_s = profile.iteration_s(len(step.decoding), step.prefill_tokens)
        count = batcher.steps_alike(step)  # until a row ends or the batch changes by itself; 1 if anything else is due
        if (next_event_s - now_s) < count * one_s:  # an arrival or a stop comes first: the iteration it falls in ends
            count = max(1, ceil((next_event_s - now_s) / one_s))
        now_s += count * one_s
        ended = batcher.finish(step, now_s, count=count)

Rules and their sources (TensorRT-LLM; cpp/tensorrt_llm/batch_manager unless said otherwise):

- first come, first served: at most `max_batch_size` requests are *active*, the rest wait in the executor's queue,
  which no gauge shows (trtGptModelInflightBatching.cpp, executorImpl.cpp);
- guaranteed_no_evict starts a request only if prompt + requested output of every started one fit; the first that does
  not fit holds back all behind it. It gets no credit for blocks it could reuse (capacityScheduler.cpp; the credit is
  inferred);
- with reuse, a request whose next block another one is computing right now waits for it instead of computing it too;
  those behind it may pass (capacityScheduler.cpp, beneficialToSkip);
- max_utilization starts a request if its prompt fits, and when blocks run out pauses the newest started one: its
  blocks go to the cache, it keeps its tokens and its place in the order, and prefills again (capacityScheduler.cpp);
- generation first, then context in order, up to `max_num_tokens`; with chunked context a prompt is cut at a multiple
  of `tokens_per_block`, first come first served (microBatchScheduler.cpp);
- the iteration that computes the last prompt token also gives the first output token;
- a prompt longer than max_input_len is refused; an output that max_seq_len has no room for is lowered without a word
  (LlmRequest::validate, llmRequest.h);
- a stop of a request in the executor's queue acts when the request becomes active (executorImpl.cpp);
- a stop by id is seen at once, a cancelled stream at the next check, every `cancellation_check_period_s`; either is
  obeyed at the next iteration boundary. The row leaves its tokens behind for reuse (model_instance_state.cc,
  handleStopRequest and WaitForCancel). A prompt that was stopped half way leaves what was computed (inferred).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count as counter
from math import ceil

from sidecar.inflight.batch import (
    BatchedSequence,
    BatcherSettings,
    BlockKey,
    CapacityPolicy,
    Chunk,
    End,
    Iteration,
    RequestError,
    Row,
    RowState,
)
from sidecar.inflight.blocks import BlockPool, Ids, Match


class Batcher:
    """The state of one engine: the executor's queue, the active rows, the blocks."""

    def __init__(self, settings: BatcherSettings) -> None:
        self.settings = settings
        self.pool = BlockPool(settings.blocks_max, settings.tokens_per_block, settings.kv_cache_reuse)
        self.rows: dict[str, Row] = {}  # all that have not ended, by id
        self.iterations = 0
        self.pauses = 0
        self._orders = counter()
        self._queue: deque[Row] = deque()
        self._context: list[Row] = []  # ACTIVE and CONTEXT, in order
        self._generation: dict[Row, None] = {}
        self._decoding: tuple[Row, ...] | None = ()  # the same as a tuple; None after a change
        self._reserved = 0  # blocks that started rows were promised and do not hold yet (guaranteed_no_evict)
        self._stops: dict[str, float] = {}
        self._decoded = 0  # decode iterations so far: all generation rows count with it
        self._growth: list[tuple[int, int, int, Row]] = []  # when a row needs one more block, in decode iterations
        self._ends: list[tuple[int, int, int, Row]] = []  # when a row's tokens are used up, in decode iterations

    def add(self, request: BatchedSequence, now_s: float) -> Row:
        """Put the request at the end of the executor's queue. Raises RequestError if it can never run here."""
        settings, prompt = self.settings, len(request.prompt_ids)
        if request.id in self.rows:
            raise RequestError(f"request id {request.id!r} is in flight already")
        if prompt > settings.prompt_tokens_max:
            raise RequestError(
                f"prompt length ({prompt}) exceeds the model's maximum input length ({settings.prompt_tokens_max})"
            )
        if prompt + request.output_tokens_max > settings.max_seq_len:
            request = replace(request, output_tokens_max=settings.max_seq_len - prompt)
        if not settings.chunked_context and prompt > settings.max_num_tokens:
            raise RequestError(f"prompt length ({prompt}) exceeds max_num_tokens ({settings.max_num_tokens})")
        if self._blocks(prompt + request.output_tokens_max) > self.pool.blocks_max:
            raise RequestError(
                f"prompt length ({prompt}) + request_output_len ({request.output_tokens_max}) exceeds the KV cache "
                f"({settings.kv_tokens_max} tokens)"
            )
        row = Row(request, next(self._orders), now_s, request.prompt_ids)
        self.rows[request.id] = row
        self._queue.append(row)
        return row

    def next_check_s(self, now_s: float) -> float:
        """Return when the engine next looks for cancelled streams, at `now_s` or later."""
        period_s = self.settings.cancellation_check_period_s
        return ceil(now_s / period_s) * period_s if period_s else now_s

    def stop(self, request_id: str, *, seen_s: float) -> None:
        """Let the row go at the first iteration boundary from `seen_s` on. An unknown id changes nothing."""
        if request_id in self.rows:
            self._stops[request_id] = min(seen_s, self._stops.get(request_id, seen_s))

    def next_stop_s(self) -> float | None:
        """When the next stop of an active row is seen; a driver ends its jump at the iteration boundary after it."""
        return min((seen_s for _, seen_s in self._stops_of_active()), default=None)

    def plan(self, now_s: float) -> Iteration | None:
        """Return what the iteration that starts at `now_s` does. None if nothing can run and nothing was stopped."""
        self._activate()
        stopped: tuple[Row, ...] = ()
        while self._stops and (left := self._let_go(now_s)):
            stopped += left
            self._activate()  # one that was stopped while it waited leaves in the next round
        paused = self._grow(self._decoded, now_s)
        chunks, copies = self._prefill(now_s, may_start=not paused) if self._context else ((), ())
        if self._decoding is None:
            self._decoding = tuple(self._generation)
        if not (self._decoding or chunks or stopped):
            return None
        return Iteration(
            decoding=self._decoding,
            chunks=chunks,
            stopped=stopped,
            paused=paused,
            copies=copies,
            prefill_tokens=sum(chunk.tokens for chunk in chunks) if chunks else 0,
        )

    def steps_alike(self, step: Iteration) -> int:
        """For how many iterations, this one included, the batch stays as in `step` if nothing comes from outside."""
        if step.chunks or not step.decoding:
            return 1
        while self._stale(self._ends[0]):
            heappop(self._ends)
        until_end = self._ends[0][0] - self._decoded
        if self.settings.policy is CapacityPolicy.MAX_UTILIZATION:
            spare = self.pool.free // len(step.decoding) - 1  # blocks that each row may take before any must pause
            return max(1, min(until_end, spare * self.settings.tokens_per_block))
        return max(1, until_end)

    def finish(
        self,
        step: Iteration,
        now_s: float,
        *,
        tokens: Sequence[int] = (),
        ended: Mapping[Row, End] | None = None,
        count: int = 1,
    ) -> list[Row]:
        """Account for `count` iterations like `step`, over at `now_s`; the rows that ended, in no special order.

        `tokens` are the new ids of `step.sampling`, and `ended` the rows that end by them; a simulator gives neither.
        """
        if step.empty:
            return []
        assert count == 1 or not (step.chunks or tokens), "only iterations that are alike can be counted together"
        self.iterations += count
        if step.decoding:
            self._grow(self._decoded + count - 1, now_s)
            self._decoded += count
        for chunk in step.chunks:
            chunk.row.computed_tokens += chunk.tokens
            if chunk.last:
                self._begin_generation(chunk.row, now_s)
        for row, token in zip(step.sampling, tokens, strict=bool(tokens)):
            row.output_ids.append(token)
            row.last_token_s = now_s
        over = list((ended or {}).items())
        for row, reason in over:
            self._end(row, reason, now_s)
        return [row for row, _ in over] + self._used_up(now_s)

    def generated_tokens(self, row: Row) -> int:
        """Output tokens of the row so far."""
        running = self._decoded - row.since if row.state is RowState.GENERATION else 0
        return row.generated_tokens + running

    @property
    def active(self) -> int:
        """Rows that the engine has taken from its queue."""
        return len(self._context) + len(self._generation)

    @property
    def queued(self) -> int:
        """Rows in the executor's queue, which upstream's gauges do not show."""
        return len(self._queue)

    def _activate(self) -> None:
        """Take requests from the executor's queue while the batch has room."""
        while self._queue and self.active < self.settings.max_batch_size:
            row = self._queue.popleft()
            row.state = RowState.ACTIVE
            self._context.append(row)

    # --- capacity -----------------------------------------------------------------------------------------------

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.settings.tokens_per_block)

    def _blocks_to_completion(self, row: Row) -> int:
        return self._blocks(len(row.request.prompt_ids) + row.request.output_tokens_max)

    def _fits(self, row: Row) -> bool:
        """True if the capacity rule lets the row start now."""
        if self.settings.policy is CapacityPolicy.GUARANTEED_NO_EVICT:
            return self._blocks_to_completion(row) <= self.pool.free - self._reserved
        return self._blocks(len(row.prompt_ids) + 1) <= self.pool.free

    def _grow(self, until: int, now_s: float) -> tuple[Row, ...]:
        """Give rows the blocks they need up to decode iteration `until`; the rows that had to pause for it."""
        paused: list[Row] = []
        while self._growth and self._growth[0][0] <= until:
            entry = self._growth[0]
            if self._stale(entry):
                heappop(self._growth)
            elif self.pool.free:
                at, order, run, row = heappop(self._growth)
                row.blocks.append(self.pool.allocate(now_s))
                self._reserved -= 1
                heappush(self._growth, (at + self.settings.tokens_per_block, order, run, row))
            else:  # only under max_utilization: guaranteed_no_evict reserved the block when the row started
                paused.append(self._pause_newest(now_s))
        return tuple(paused)

    def _pause_newest(self, now_s: float) -> Row:
        """Take the newest started row out of the batch; it keeps its tokens and its place in the order."""
        started = [*self._generation, *(row for row in self._context if row.state is RowState.CONTEXT)]
        row = max(started, key=lambda each: each.order)
        self.pauses += 1
        self._leave(row, now_s)
        row.prompt_ids = self._ids(row)
        row.state, row.run = RowState.ACTIVE, row.run + 1
        insort(self._context, row, key=lambda each: each.order)
        return row

    # --- context ------------------------------------------------------------------------------------------------

    def _prefill(self, now_s: float, may_start: bool) -> tuple[tuple[Chunk, ...], tuple[tuple[int, int], ...]]:
        """The prompt chunks of this iteration, first come first served, and the block copies that they need."""
        budget = self.settings.max_num_tokens - len(self._generation)
        chunks: list[Chunk] = []
        copies: list[tuple[int, int]] = []
        coming: set[BlockKey | None] = {None}
        for row in self._context:
            match = None
            if row.state is RowState.ACTIVE:
                if not (may_start and (self._fits(row) or len(coming) > 1)):
                    break
                match = self.pool.match(row.prompt_ids)
                next_block = self._next_block(row, match)
                if next_block and next_block in coming:
                    continue
                if not self._fits(row):
                    break
                row.coming = next_block
            done = row.computed_tokens if match is None else match.tokens(self.settings.tokens_per_block)
            tokens = self._chunk_tokens(len(row.prompt_ids) - done, budget)
            if not tokens:
                break
            if match is not None:
                copies += self._start(row, match, now_s)
            coming.add(row.coming)
            chunks.append(Chunk(row, row.computed_tokens, tokens))
            budget -= tokens
        return tuple(chunks), tuple(copies)

    def _next_block(self, row: Row, match: Match) -> BlockKey | None:
        """The first whole block that the row would have to compute, if others could reuse it afterwards."""
        size, begin = self.settings.tokens_per_block, len(match.blocks)
        if not self.settings.kv_cache_reuse or (begin + 1) * size >= len(row.prompt_ids):
            return None
        return (match.blocks[-1] if match.blocks else None), row.prompt_ids[begin * size : (begin + 1) * size]

    def _chunk_tokens(self, remaining: int, budget: int) -> int:
        """Return how much of a prompt is computed now: all of it, or (chunked context) a multiple of the block size."""
        if remaining <= budget:
            return remaining
        if not self.settings.chunked_context:
            return 0
        return budget // self.settings.tokens_per_block * self.settings.tokens_per_block

    def _start(self, row: Row, match: Match, now_s: float) -> list[tuple[int, int]]:
        """Hold the row's prompt blocks, reused ones first; the copy of a partly reused block, if one is needed."""
        retention, prompt = row.request.retention, len(row.request.prompt_ids)
        self.pool.retain(match.blocks, retention, prompt, now_s)
        row.blocks, copy = self.pool.take(match, now_s)
        row.stored_blocks = len(match.blocks)
        row.computed_tokens = match.tokens(self.settings.tokens_per_block)
        reused_blocks, new_blocks = len(row.blocks), self._blocks(len(row.prompt_ids)) - len(row.blocks)
        row.blocks += [self.pool.allocate(now_s) for _ in range(new_blocks)]
        if row.first_scheduled_s is None:
            row.first_scheduled_s = now_s
            row.reused_blocks, row.reused_tokens = reused_blocks, row.computed_tokens
            row.new_blocks, row.total_blocks = new_blocks, new_blocks + (copy is not None)
        self._reserved += self._blocks_to_completion(row) - len(row.blocks)
        row.state = RowState.CONTEXT
        return [copy] if copy else []

    # --- generation ---------------------------------------------------------------------------------------------

    def _begin_generation(self, row: Row, now_s: float) -> None:
        """The prompt is computed and gave one token: its full blocks can be reused, and the row decodes from now on."""
        size, prompt = self.settings.tokens_per_block, len(row.prompt_ids)
        self._store(row, row.prompt_ids[: (prompt - 1) // size * size], now_s)
        self._context.remove(row)
        self._generation[row] = None
        self._decoding = None
        row.state, row.since = RowState.GENERATION, self._decoded
        row.generated_tokens += 1
        if row.first_token_s is None:
            row.first_token_s = now_s
        limit = min(row.request.output_tokens_max, row.request.ends_after or row.request.output_tokens_max)
        heappush(self._ends, (self._decoded + limit - row.generated_tokens, row.order, row.run, row))
        # The next iteration writes token number `prompt` (from 0); a new block is due when that is the first of one.
        heappush(self._growth, (self._decoded + len(row.blocks) * size - prompt, row.order, row.run, row))

    def _used_up(self, now_s: float) -> list[Row]:
        """End the rows whose tokens are used up, or (simulator) whose end id has come."""
        over: list[Row] = []
        while self._ends and self._ends[0][0] <= self._decoded:
            entry = heappop(self._ends)
            if not self._stale(entry):
                row = entry[-1]
                over.append(row)
                by_end_id = row.request.ends_after is not None and row.request.ends_after <= self.generated_tokens(row)
                row.last_token_s = now_s
                self._end(row, End.END_ID if by_end_id else End.LENGTH, now_s)
        return over

    def _stale(self, entry: tuple[int, int, int, Row]) -> bool:
        _, _, run, row = entry
        return row.run != run or row.state is not RowState.GENERATION

    # --- leaving ------------------------------------------------------------------------------------------------

    def _let_go(self, now_s: float) -> tuple[Row, ...]:
        """End the rows whose stop has been seen."""
        seen = [row for row, seen_s in self._stops_of_active() if seen_s <= now_s]
        for row in seen:
            self._end(row, End.STOPPED, now_s)
        return tuple(seen)

    def _stops_of_active(self) -> list[tuple[Row, float]]:
        """Nothing looks for stops in the executor's queue: a stopped row there leaves once it is active."""
        stops = ((self.rows[id_], seen_s) for id_, seen_s in self._stops.items())
        return [(row, seen_s) for row, seen_s in stops if row.state is not RowState.QUEUED]

    def _end(self, row: Row, reason: End, now_s: float) -> None:
        self._leave(row, now_s)
        row.state, row.end = RowState.ENDED, reason
        del self.rows[row.id]
        self._stops.pop(row.id, None)

    def _leave(self, row: Row, now_s: float) -> None:
        """Take the row out of the batch; what it computed is left for reuse."""
        if row.state in (RowState.CONTEXT, RowState.GENERATION):
            self._reserved -= self._blocks_to_completion(row) - len(row.blocks)
        row.generated_tokens = self.generated_tokens(row)
        if row.state is RowState.GENERATION:
            del self._generation[row]
            self._decoding = None
            self._store(row, self._ids(row)[:-1], now_s)  # the last token's keys and values were never computed
        elif row.state in (RowState.CONTEXT, RowState.ACTIVE):
            self._context.remove(row)
            self._store(row, row.prompt_ids[: row.computed_tokens], now_s)
        self.pool.release_all(row.blocks)
        row.stored_blocks = row.computed_tokens = 0
        row.coming = None

    def _ids(self, row: Row) -> Ids:
        """Prompt and output so far."""
        generated = tuple(row.output_ids) or (row.request.output_key,) * row.generated_tokens
        return row.request.prompt_ids + generated

    def _store(self, row: Row, ids: Ids, now_s: float) -> None:
        row.stored_blocks = self.pool.store(
            row.blocks, row.stored_blocks, ids, row.request.retention, len(row.request.prompt_ids), now_s
        )
