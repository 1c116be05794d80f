"""The CPU engine: the batcher decides, the transformer computes, one thread runs iteration after iteration.

With a profile, each iteration ends when the profile says, not when the arithmetic is done, so the engine keeps the
pace of a given GPU; an iteration whose arithmetic takes longer is an overrun and is counted. Callers may submit and
stop from any thread; `deliver` is called from the engine's thread and must not block. With a PyTorch device the same
batcher, sampling and delivery stand around arithmetic on a GPU (engine/torch_model.py).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from threading import Condition, Thread

import numpy as np
from numpy.typing import NDArray

from engine.calls import Deliver, EngineCall, Figures, OutputPart, UnsupportedError
from engine.gauges import Gauges
from engine.lengths import output_length
from engine.models import CHAT, model_of
from engine.sampling import EngineSampling, draw, penalise
from engine.transformer import PRESETS, FlatBatch, FlatChunk
from sidecar.inflight.batch import BatchedSequence, BatcherSettings, End, Iteration, Row
from sidecar.inflight.batcher import Batcher
from sidecar.inflight.blocks import Ids
from sidecar.inflight.profile import IterationTimes, step_s

IDLE = Iteration(decoding=())


@dataclass(frozen=True, slots=True, kw_only=True)
class NumpySettings:
    """Settings of one engine. Without a `profile` it runs as fast as the arithmetic allows."""

    tokenizer_dir: Path
    preset: str = "small"
    seed: int = 0
    profile: IterationTimes | None = None
    device: str | None = None  # of PyTorch, `cuda` or `cpu`; None = numpy computes
    batcher: BatcherSettings = field(
        default_factory=lambda: BatcherSettings(max_seq_len=2048, max_num_tokens=512, kv_tokens_max=81_920)
    )

    def __post_init__(self) -> None:
        if self.device is None and self.preset not in (*PRESETS, CHAT):
            raise ValueError(f"unknown preset {self.preset!r}; known: {', '.join((*PRESETS, CHAT))}")


@dataclass(eq=False, slots=True)
class Ticket:
    """One call in the engine: its sequences that have not ended."""

    call: EngineCall
    deliver: Deliver
    live: set[str] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Sequence:
    """What the arithmetic must know of one row."""

    ticket: Ticket
    index: int
    sampling: EngineSampling  # the call's, each sequence with a seed of its own
    length: int | None  # output tokens after which the end id comes; None = the model draws it itself
    counts: NDArray[np.int32] | None  # how often each readable id stands in prompt and output; only with penalties
    bias: NDArray[np.float32] | None  # added to the logits: embedding_bias and one-token bad words


class NumpyEngine:
    """One model, one thread, one in-flight batch."""

    def __init__(
        self,
        settings: NumpySettings,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.language, self._transformer = model_of(
            settings.tokenizer_dir, settings.preset, settings.seed, settings.batcher, settings.device
        )
        self.batcher = Batcher(settings.batcher)
        self.gauges = Gauges()
        self.overruns = 0
        self._readable = np.array(self.language.readable)
        self._columns = {id_: column for column, id_ in enumerate(self.language.readable)}
        self._sequences: dict[Row, Sequence] = {}
        self._numbers = count()
        self._clock, self._sleep = clock, sleep
        self._wake = Condition()  # guards the batcher, the sequences and `_closing`
        self._closing = False
        self.broken: str | None = None  # what ended the thread, if it was a bug of ours
        self._due_s = 0.0  # when the iteration before was over by the profile; 0 after an idle time
        self._thread = Thread(target=self._run, name="numpy-engine", daemon=True)

    @property
    def weight_bytes(self) -> int:
        return self._transformer.weight_bytes

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread after the iteration in progress; what is in flight gets no further answer."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def submit(self, call: EngineCall, deliver: Deliver) -> Callable[[], None]:
        """Queue the call, and give the function that stops it. Raises ValueError if it can never run."""
        ticket = Ticket(call, deliver)
        outside = [id_ for id_ in call.input_ids if not 0 <= id_ < self.language.vocab_size]
        if outside:
            raise ValueError(f"tensor 'input_ids' holds {outside[0]}, outside of 0..{self.language.vocab_size - 1}")
        if call.sequences > 1 and call.sampling.greedy:
            raise UnsupportedError(
                "tensor 'num_return_sequences' > 1 needs sampling: set runtime_top_k or runtime_top_p"
            )
        if call.sequences > (most := self.settings.batcher.max_batch_size):
            raise UnsupportedError(f"tensor 'num_return_sequences' is {call.sequences}, but the batch holds {most}")
        if call.cache_salt is not None:
            raise UnsupportedError("parameter 'cache_salt': this engine's blocks are shared by all its calls")
        bias = self._bias(call)
        with self._wake:
            if self.broken:
                raise RuntimeError(self.broken)
            for index in range(call.sequences):
                self._add(ticket, index, bias)
            self._wake.notify()
        return lambda: self._stop(ticket)

    def _stop(self, ticket: Ticket) -> None:
        """Let all sequences of the call go at the next iteration boundary; the last answer says so."""
        with self._wake:
            for id_ in ticket.live:
                self.batcher.stop(id_, seen_s=self._clock())

    def step(self) -> bool:
        """Run one iteration now. False if there was nothing to do."""
        begin_s = self._clock()
        with self._wake:
            step = self.batcher.plan(begin_s)
        if step is None:
            return False
        for row in step.stopped:
            self._deliver(row, ())
        if not step.empty:
            tokens, ended = self._compute(step)
            self._keep_pace(begin_s, step)
            with self._wake:
                self.batcher.finish(step, self._clock(), tokens=tokens, ended=ended)
                self.gauges.sample(self.batcher, step)
                if not self.batcher.rows:  # upstream adds one last sample when it goes idle
                    self.gauges.sample(self.batcher, IDLE)
            for row, token in zip(step.sampling, tokens, strict=True):
                if row.end is End.END_ID:
                    row.output_ids.pop()  # as upstream: the end id ends an answer and is no part of it
                if self._sequences[row].ticket.call.streaming:
                    self._deliver(row, () if row.end is End.END_ID else (token,))
                elif row.end is not None:
                    self._deliver(row, tuple(row.output_ids))
        return True

    # --- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self.batcher.rows:
                    self._due_s = 0.0
                self._wake.wait_for(lambda: self._closing or bool(self.batcher.rows))
                if self._closing:
                    return
            try:
                self.step()
            except Exception as error:  # a bug of ours: nobody may wait for an answer that will never come
                traceback.print_exc()
                self._fail(f"the engine ended by {error!r}")
                return

    def _fail(self, message: str) -> None:
        with self._wake:
            self.broken = message
            tickets = {sequence.ticket for sequence in self._sequences.values()}
        for ticket in tickets:
            ticket.deliver(OutputPart(ids=(), final=True, error=message))

    def _keep_pace(self, begin_s: float, step: Iteration) -> None:
        """Wait until the iteration is over by the profile. A late wake-up is made up for by the next iteration."""
        if self.settings.profile is None:
            return
        duration_s = step_s(self.settings.profile, self.batcher, step)
        self._due_s = (self._due_s or begin_s) + duration_s
        rest_s = self._due_s - self._clock()
        if rest_s > 0:
            self._sleep(rest_s)
        else:
            self.overruns += 1
            self._due_s = self._clock()

    # --- arithmetic ---------------------------------------------------------------------------------------------

    def _add(self, ticket: Ticket, index: int, bias: NDArray[np.float32] | None) -> None:
        call = ticket.call
        request = BatchedSequence(
            id=str(next(self._numbers)),
            prompt_ids=call.input_ids,
            output_tokens_max=call.output_tokens_max,
            retention=call.retention,
        )
        row = self.batcher.add(request, self._clock())
        ticket.live.add(row.id)
        self._sequences[row] = Sequence(
            ticket,
            index,
            replace(call.sampling, seed=call.sampling.seed + index),
            self._length(call),
            self._counts(call) if call.sampling.penalised else None,
            bias,
        )

    def _length(self, call: EngineCall) -> int | None:
        """Return how many tokens the toy says; nobody knows it of a real model."""
        if self.settings.preset == CHAT:
            return None
        return output_length(call.input_ids, self.language, self.settings.seed)

    def _counts(self, call: EngineCall) -> NDArray[np.int32]:
        counts = np.zeros(len(self._readable), np.int32)
        for id_ in call.input_ids:
            if id_ in self._columns:
                counts[self._columns[id_]] += 1
        return counts

    def _bias(self, call: EngineCall) -> NDArray[np.float32] | None:
        single = [self._columns[word[0]] for word in call.bad_words if len(word) == 1 and word[0] in self._columns]
        if not single and not call.embedding_bias:
            return None
        bias = np.zeros(len(self._readable), np.float32)
        if call.embedding_bias:
            if len(call.embedding_bias) != self.language.vocab_size:
                raise ValueError(
                    f"tensor 'embedding_bias' holds {len(call.embedding_bias)} values, "
                    f"but the vocabulary {self.language.vocab_size}"
                )
            bias += np.array(call.embedding_bias, np.float32)[self._readable]
        bias[single] = -np.inf
        return bias

    def _compute(self, step: Iteration) -> tuple[list[int], dict[Row, End]]:
        """The new token of each sampling row, and the rows that end by it."""
        for source, target in step.copies:
            self._transformer.copy_block(source, target)
        logits = self._transformer.logits(self._batch(step))
        rows = step.sampling
        sequences = [self._sequences[row] for row in rows]
        for row, sequence, scores in zip(rows, sequences, logits, strict=True):
            self._adjust(row, sequence, scores)
        drawn = draw(logits, [sequence.sampling for sequence in sequences], [len(row.output_ids) for row in rows])
        chosen: list[int] = self._readable[drawn].tolist()
        ended: dict[Row, End] = {}
        for place, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
            chosen[place], end = self._ending(row, sequence, chosen[place])
            if end is not None:
                ended[row] = end
        return chosen, ended

    def _batch(self, step: Iteration) -> FlatBatch:
        size = self.settings.batcher.tokens_per_block
        tables = [np.array([block.index for block in row.blocks]) for row in step.decoding]
        lengths = [len(row.request.prompt_ids) + len(row.output_ids) - 1 for row in step.decoding]
        ids = [row.output_ids[-1] for row in step.decoding]
        positions = [np.array(lengths, np.int64)]
        slots = [
            np.array(
                [table[at // size] * size + at % size for table, at in zip(tables, lengths, strict=True)], np.int64
            )
        ]
        wanted = list(range(len(ids)))
        chunks = []
        for chunk in step.chunks:
            end = chunk.begin + chunk.tokens
            table = np.array([block.index for block in chunk.row.blocks[: -(-end // size)]])
            places = np.arange(chunk.begin, end)
            chunks.append(FlatChunk(begin=len(ids), tokens=chunk.tokens, table=table, row=chunk.row.id))
            ids += chunk.row.prompt_ids[chunk.begin : end]
            positions.append(places)
            slots.append(table[places // size] * size + places % size)
            if chunk.last:
                wanted.append(len(ids) - 1)
        return FlatBatch(
            ids=np.array(ids),
            positions=np.concatenate(positions),
            slots=np.concatenate(slots),
            tables=tables,
            chunks=chunks,
            wanted=np.array(wanted, np.int64),
            rows=tuple(row.id for row in step.decoding),
        )

    def _adjust(self, row: Row, sequence: Sequence, scores: NDArray[np.float32]) -> None:
        """Apply to one row's logits, in place, what its call asked for."""
        call = sequence.ticket.call
        if sequence.length is None and call.end_id in self._columns and len(row.output_ids) < call.sampling.min_tokens:
            scores[self._columns[call.end_id]] = -np.inf
        if sequence.counts is not None:
            penalise(scores, sequence.counts, call.sampling)
        if sequence.bias is not None:
            scores += sequence.bias
        for word in call.bad_words:
            if len(word) > 1 and word[-1] in self._columns and _tail(row, len(word) - 1) == word[:-1]:
                scores[self._columns[word[-1]]] = -np.inf

    def _ending(self, row: Row, sequence: Sequence, token: int) -> tuple[int, End | None]:
        """The token that is said in the end, and why the row ends by it, if it does."""
        call, said = sequence.ticket.call, len(row.output_ids)
        if sequence.length is None:
            if token == call.end_id:
                return token, End.END_ID
        elif call.end_id == self.language.end_id and said + 1 >= sequence.length and said >= call.sampling.min_tokens:
            return self.language.end_id, End.END_ID
        if sequence.counts is not None:
            sequence.counts[self._columns[token]] += 1
        for word in call.stop_words:
            if word and (*_tail(row, len(word) - 1), token) == word:
                return token, End.STOP_WORD
        return token, None

    # --- answers ------------------------------------------------------------------------------------------------

    def _deliver(self, row: Row, ids: Ids) -> None:
        """Hand over a response; forget the row if it has ended."""
        sequence = self._sequences[row]
        ticket = sequence.ticket
        final = False
        if row.end is not None:
            del self._sequences[row]
            self._transformer.forget(row.id)
            with self._wake:
                ticket.live.discard(row.id)
            final = not ticket.live
            if row.end is End.STOPPED and not ticket.call.streaming:
                ids = tuple(row.output_ids)
            self.gauges.lengths.append((len(row.request.prompt_ids), len(row.output_ids)))
        ticket.deliver(
            OutputPart(
                ids=ids,
                sequence=sequence.index,
                end=row.end,
                final=final,
                generated_tokens=len(row.output_ids),
                figures=_figures(row) if row.end is not None else None,
            )
        )


def _tail(row: Row, tokens: int) -> Ids:
    """The last `tokens` ids of prompt and output; a stop word may begin in what an earlier slice generated."""
    if not tokens:
        return ()
    tail = tuple(row.output_ids[-tokens:])
    return row.request.prompt_ids[len(row.request.prompt_ids) - (tokens - len(tail)) :] + tail


def _figures(row: Row) -> Figures:
    return Figures(
        new_blocks=row.new_blocks,
        reused_blocks=row.reused_blocks,
        total_blocks=row.total_blocks,
        computed_tokens=len(row.request.prompt_ids) - row.reused_tokens,
        arrival_ns=_ns(row.arrived_s),
        first_scheduled_ns=_ns(row.first_scheduled_s),
        first_token_ns=_ns(row.first_token_s),
        last_token_ns=_ns(row.last_token_s),
    )


def _ns(seconds: float | None) -> int:
    return 0 if seconds is None else int(seconds * 1e9)
