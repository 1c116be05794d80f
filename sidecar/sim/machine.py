"""A simulated engine: the batcher and the iteration times of `engine/`, driven through time in jumps.

Between two things that change the batch every iteration is alike, so a jump over many costs as much as one. What
comes from outside (a call, a stop) ends the jump at the boundary of the iteration it falls into, as on a real engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from math import ceil, floor, inf

from numpy.random import Generator, default_rng

from sidecar.core.request import Lane
from sidecar.inflight.batch import BatchedSequence, BatcherSettings, End, Iteration, Row, RowState
from sidecar.inflight.batcher import Batcher
from sidecar.inflight.blocks import Ids
from sidecar.inflight.profile import IterationTimes, context_tokens, prompt_pairs
from sidecar.sim.traits import AS_THE_PROFILE, EngineTraits
from sidecar.sim.workloads import PROMPT_BLOCK

RESTING = Iteration(decoding=())  # an empty iteration, which ends when the next call comes
EPSILON = 1e-9  # of an iteration: keeps a boundary from being missed by rounding
ALIKE_MAX = 32  # iterations of one jump where the context counts: it grows, and so does the time of an iteration


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What an engine charges for being interrupted. Honest by default; free for `ours-at-no-cost`."""

    stop_s: float = 0.005  # the call that says so: measured on two cores, eight at once, 5 ms at the median
    cancel_s: float = 0.010  # until a broken stream is noticed: cancellation_check_period_ms in our model repository
    resume_tokens: int = 7  # that a resume computes anew though the cache has them: `scripts/bench resume`, real Triton
    offline_prefill: bool = True  # False: prompts of the offline lane cost nothing, first or resumed


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedDispatch:
    """One dispatch as the engine gets it."""

    request_id: str
    lane: Lane
    context_tokens: int  # the prompt, and behind it what was generated before
    output_tokens: int  # that it will give, known to the engine alone
    output_tokens_max: int  # request_output_len: what KV is reserved for
    slots: int
    fills_cache: bool = False  # its one token is dropped: it is sent for the KV of its prompt
    prefix_key: str = ""
    prefix_tokens: int = 0  # of the prompt, equal to those of every other call with this key
    prompt_blocks: tuple[int, ...] = ()  # what the prefix is made of; () = of its key alone


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The dispatch gave its first token."""

    request_id: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The last response of a dispatch."""

    request_id: str
    output_tokens: int
    reused_tokens: int
    stopped: bool  # by a stop, before its end


@dataclass(slots=True)
class MachineTime:
    """What the engine's time went into, since the start. Rows count each iteration they are in."""

    busy_s: float = 0.0  # iterations
    row_s: float = 0.0  # occupied slots times time
    offline_tokens: int = 0  # generated, discarded ones included
    prefill_tokens: int = 0
    prefilled_again_tokens: int = 0  # computed before, for the same request
    shared_tokens: int = 0  # not computed, because the KV cache had them from other requests
    discarded_tokens: int = 0  # generated and thrown away
    online_gaps_s: list[tuple[float, int]] = field(default_factory=list)  # (gap, how many tokens had it)


@dataclass(slots=True, eq=False)
class _RunningRow:
    call: SimulatedDispatch
    rows: list[Row]
    left: int  # rows that have not ended
    first: bool = False
    muted: bool = False  # nobody listens any more: it was lost, or failed


class Machine:
    """One engine in simulated time. `up` until `kill`; `revive` brings it back empty."""

    def __init__(
        self,
        settings: BatcherSettings,
        profile: IterationTimes,
        prices: Prices | None = None,
        traits: EngineTraits = AS_THE_PROFILE,
        rng: Generator | None = None,
    ) -> None:
        self.settings, self.profile, self.prices = settings, profile, prices or Prices()
        self.traits, self._rng = traits, rng or default_rng(0)
        self.slots = settings.max_batch_size
        self.usage = MachineTime()
        self.occupied = 0  # slots of calls that the engine still holds, dropped ones not
        self.up = True
        self._numbers = count()
        self._computed: dict[str, int] = {}  # per request: the longest context that was ever computed
        self._sent: dict[str, Ids] = {}  # per request: the context of its last call
        self._keys: dict[str, int] = {}  # per request and per prefix: what stands for its tokens in the KV cache
        self._new_keys = count(1)
        self._reset()

    def _reset(self) -> None:
        self._batcher = Batcher(self.settings)
        self._running: dict[str, _RunningRow] = {}  # by request id: those somebody listens to
        self._calls: dict[str, _RunningRow] = {}  # by row id
        self._online_decoding = 0
        self._last_s, self._last_gap_s = -inf, 0.0  # the jump before this one: its end, its iteration time
        self._step: Iteration | None = None
        self._begin_s = self._end_s = self._one_s = 0.0
        self._count = 0
        self._rows_read: tuple[Row, ...] = ()  # whose context `_context` is, at the begin of the jump
        self._context = 0

    # ---- what the driver does ----------------------------------------------------------------------------------------

    def submit(self, call: SimulatedDispatch, now_s: float) -> None:
        """The call waits in the engine's queue; it may start at the next iteration boundary."""
        key = self._key(call.request_id)
        prompt = self._prompt(call, key)
        if self._costs_no_prefill(call):
            prompt = prompt[:1]
        running = _RunningRow(call, [], call.slots)
        for _ in range(call.slots):
            request = BatchedSequence(
                id=str(next(self._numbers)),
                prompt_ids=prompt,
                output_tokens_max=call.output_tokens_max,
                ends_after=call.output_tokens,
                output_key=key,
            )
            running.rows.append(self._batcher.add(request, now_s))
            self._calls[request.id] = running
        self._running[call.request_id] = running
        self.occupied += call.slots
        self._cut(now_s)

    def _costs_no_prefill(self, call: SimulatedDispatch) -> bool:
        return call.lane is Lane.OFFLINE and not self.prices.offline_prefill

    def _prompt(self, call: SimulatedDispatch, key: int) -> Ids:
        """Return what stands for the tokens that are sent.

        Of a resume the last ones but one differ from what the cache holds, so that it computes `resume_tokens` anew.
        """
        before = self._sent.get(call.request_id, ())
        if not before and call.prefix_tokens:
            before = self._prefix(call)
        prompt = before[: call.context_tokens] + (key,) * (call.context_tokens - len(before))
        anew = self.prices.resume_tokens - 1
        if self._computed.get(call.request_id, 0) >= call.context_tokens - 1 > anew > 0:
            prompt = prompt[: -anew - 1] + (next(self._new_keys),) * anew + prompt[-1:]
        self._sent[call.request_id] = prompt
        return prompt

    def _prefix(self, call: SimulatedDispatch) -> Ids:
        """Return what stands for the tokens of the prefix of `call`, in the KV cache."""
        if not call.prompt_blocks:
            return (self._key(call.prefix_key),) * call.prefix_tokens
        keys = (self._key(f"block {each}") for each in call.prompt_blocks)
        return tuple(key for key in keys for _ in range(PROMPT_BLOCK))[: call.prefix_tokens]

    def _key(self, name: str) -> int:
        """Return what stands for the tokens of this request, or of this prefix, in the KV cache."""
        if name not in self._keys:
            self._keys[name] = next(self._new_keys)
        return self._keys[name]

    def stop(self, request_id: str, now_s: float) -> None:
        """The call ends at the first iteration boundary after the stop is seen. Its CallEnded is still owed.

        One that has just ended, and whose end is about to be told, is past stopping.
        """
        if request_id in self._running:
            self._stop_rows(self._running[request_id], self._seen_s(now_s))

    def _seen_s(self, now_s: float) -> float:
        """Return when the engine sees a stop that is sent now."""
        seen_s, poll_s = now_s + self.prices.stop_s, self.traits.stop_poll_s
        return max(seen_s, ceil(now_s / poll_s) * poll_s) if poll_s else seen_s

    def abandon(self, request_id: str, now_s: float) -> None:
        """Its stream broke: the engine sees it like a stop, holds the slots until then, and says no more of it."""
        running = self._running.pop(request_id)
        running.muted = True
        self._stop_rows(running, now_s + self.prices.cancel_s)

    def drop(self, request_id: str, now_s: float) -> None:
        """The engine failed it: the slots are free, and what it generated is thrown away."""
        running = self._running.pop(request_id)
        self.usage.discarded_tokens += self._tokens(running, self._passed(now_s))
        running.muted = True
        self.occupied -= running.left
        running.left = 0
        self._stop_rows(running, now_s)

    def kill(self) -> list[str]:
        """The engine dies with all it holds; the ids of the request that somebody still waits for."""
        listening = list(self._running)
        self.up, self.occupied = False, 0
        self._reset()
        return listening

    def revive(self) -> None:
        """It is up again, empty."""
        self.up = True

    def forget(self, request_id: str) -> None:
        """This request will not come again."""
        self._computed.pop(request_id, None)
        self._sent.pop(request_id, None)
        self._keys.pop(request_id, None)

    @property
    def iterations(self) -> int:
        """Iterations since the start, or since the engine came back."""
        return self._batcher.iterations

    def next_s(self) -> float:
        """Return when something happens next that `advance` would report, or the batch changes; inf when idle."""
        return self._end_s if self._step is not None else inf

    def advance(self, now_s: float) -> list[FirstToken | CallEnded]:
        """Every iteration that ends by `now_s` is over; what came of them.

        The next iteration has begun by then: who answers an end with a new call waits for the boundary after it.
        """
        outcomes: list[FirstToken | CallEnded] = []
        while self._step is not None and self._end_s <= now_s:
            self._account(self._step, outcomes)
            self._plan(self._end_s, outcomes)
        return outcomes

    def output_tokens(self, request_id: str, now_s: float) -> int:
        """Return how many tokens this dispatch has given by now."""
        return self._tokens(self._running[request_id], self._passed(now_s))

    def output_tokens_of(self, request_ids: Iterable[str], now_s: float) -> Iterator[tuple[str, int]]:
        """The same for each of these that has not had its last response."""
        passed = self._passed(now_s)
        for request_id in request_ids:
            if running := self._running.get(request_id):
                yield request_id, self._tokens(running, passed)

    def runs(self, request_id: str) -> bool:
        """True from the call to its last response."""
        return request_id in self._running

    def running_ids(self) -> list[str]:
        """The request of every call that somebody listens to."""
        return list(self._running)

    def gaps_s(self, now_s: float, within_s: float) -> tuple[float, ...]:
        """The last iteration time, as streams see it: between two of their tokens lies one iteration.

        That of the jump before this one if it ended within the last `within_s`, as a tick of the real driver tells it.
        """
        if now_s - self._last_s <= within_s:
            return (self._last_gap_s,)
        if self._step is not None and self._step.decoding and now_s - self._begin_s >= self._one_s:
            return (self._one_s,)
        return ()

    # ---- iterations --------------------------------------------------------------------------------------------------

    def _plan(self, now_s: float, outcomes: list[FirstToken | CallEnded]) -> None:
        """Begin the next jump, unless there is nothing to do; rows that were stopped leave before it."""
        step = self._batcher.plan(now_s)
        while step is not None:
            for row in step.stopped:
                self._left(row, outcomes)
            if not step.empty:
                break
            self._batcher.finish(step, now_s)
            step = self._batcher.plan(now_s)
        self._step = step
        if step is not None:
            self._begin_s, self._count = now_s, self._batcher.steps_alike(step)
            self._one_s = self._iteration_s(step)
            if not self.traits.steady:  # each iteration takes its own time
                self._count, self._one_s = 1, self.traits.stretched_s(self._one_s, self._rng)
            self._end_s = now_s + self._count * self._one_s
        if (stop_s := self._batcher.next_stop_s()) is not None:
            self._cut(stop_s)

    def _iteration_s(self, step: Iteration) -> float:
        """Return the mean time of this jump's iterations, and shorten it where their context would outgrow it."""
        rows = len(step.decoding)
        if not self.profile.counts_context:
            return self.profile.iteration_s(rows, step.prefill_tokens)
        if step.decoding is not self._rows_read:
            self._rows_read, self._context = step.decoding, context_tokens(self._batcher, step)
        self._count = min(self._count, ALIKE_MAX)
        read = self._context + rows * (self._count - 1) / 2
        return self.profile.iteration_s(rows, step.prefill_tokens, read, prompt_pairs(step))

    def _cut(self, when_s: float) -> None:
        """End the jump at the boundary of the iteration that `when_s` falls into; an engine at rest wakes then."""
        if self._step is None or (self._step is RESTING and when_s < self._end_s):
            self._step, self._count = RESTING, 0
            self._begin_s = self._end_s = when_s
        elif self._count > 1 and when_s < self._end_s:
            self._count = min(self._count, max(1, ceil((when_s - self._begin_s) / self._one_s - EPSILON)))
            self._end_s = self._begin_s + self._count * self._one_s

    def _account(self, step: Iteration, outcomes: list[FirstToken | CallEnded]) -> None:
        """The jump is over: tokens, first tokens, ends."""
        if step.empty:
            return
        self._use(step)
        self._context += len(step.decoding) * self._count
        over = self._batcher.finish(step, self._end_s, count=self._count)
        for chunk in step.chunks:
            if chunk.last:
                self._began(self._calls[chunk.row.id], outcomes)
        for row in over:
            self._left(row, outcomes)

    def _use(self, step: Iteration) -> None:
        usage, jump_s, online = self.usage, self._count * self._one_s, self._online_decoding
        usage.busy_s += jump_s
        usage.row_s += jump_s * self._batcher.active
        usage.prefill_tokens += step.prefill_tokens
        usage.offline_tokens += (len(step.decoding) - online) * self._count
        if online:
            usage.online_gaps_s.append((self._one_s, online * self._count))
        if step.decoding:
            self._last_s, self._last_gap_s = self._end_s, self._one_s
        for chunk in step.chunks:
            before = self._computed.get(self._calls[chunk.row.id].call.request_id, 0)
            usage.prefilled_again_tokens += max(0, min(chunk.begin + chunk.tokens, before) - chunk.begin)

    def _began(self, running: _RunningRow, outcomes: list[FirstToken | CallEnded]) -> None:
        if running.call.fills_cache:
            return
        online = running.call.lane is Lane.ONLINE
        self._online_decoding += online
        self.usage.offline_tokens += not online
        if not running.first and not running.muted:
            running.first = True
            outcomes.append(FirstToken(running.call.request_id))

    def _left(self, row: Row, outcomes: list[FirstToken | CallEnded]) -> None:
        """A row is out of the batch; with the last one of its call the engine has let the slots go."""
        running = self._calls.pop(row.id)
        call = running.call
        context = len(row.request.prompt_ids) + row.generated_tokens - 1
        before = self._computed.get(call.request_id, 0)
        self.usage.shared_tokens += max(0, row.reused_tokens - before)
        self._computed[call.request_id] = max(before, context)
        if call.lane is Lane.ONLINE and row.generated_tokens:
            self._online_decoding -= 1
        if not running.left:
            return
        running.left -= 1
        self.occupied -= 1
        if not running.left and not running.muted:
            del self._running[call.request_id]
            first = running.rows[0]
            tokens = 0 if call.fills_cache else first.generated_tokens
            reused_tokens = call.context_tokens if self._costs_no_prefill(call) else first.reused_tokens
            outcomes.append(CallEnded(call.request_id, tokens, reused_tokens, first.end is End.STOPPED))

    def _stop_rows(self, running: _RunningRow, seen_s: float) -> None:
        for row in running.rows:
            self._batcher.stop(row.id, seen_s=seen_s)
        self._cut(seen_s)

    def _passed(self, now_s: float) -> int:
        """Iterations of this jump that are over."""
        if self._step is None or self._one_s == 0:
            return 0
        return min(self._count, max(0, floor((now_s - self._begin_s) / self._one_s + EPSILON)))

    def _tokens(self, running: _RunningRow, passed: int) -> int:
        if running.call.fills_cache:
            return 0
        row = running.rows[0]
        return self._batcher.generated_tokens(row) + (passed if row.state is RowState.GENERATION else 0)
