"""One generation by token ids, in as many dispatches as it takes: the ids joined, the stops found across seams.

Each further dispatch sends the exact ids so far, prompt and generated, and asks for fewer: resuming is then one prefix
match in the engine's KV cache, and never a tokenisation anew. What one dispatch gives is kept only if it ends well.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.call import Metadata, Terminal, Timeline
from sidecar.core.events import DeadLetter, Dispatch, Failed, Reject
from sidecar.core.request import EndReason, Lane, Request
from sidecar.driver.stop_texts import StopTexts, first_of
from sidecar.errors import MalformedAnswerError
from sidecar.token_call import Generated, RequestDeadError, RequestRejectedError, TokenCall
from sidecar.triton import wire
from sidecar.triton.client import token_request

_SAMPLING = {
    "temperature": "FP32",
    "top_k": "INT32",
    "top_p": "FP32",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
}
_TENSOR_NAMES = {"top_k": "runtime_top_k", "top_p": "runtime_top_p"}


@dataclass(slots=True, kw_only=True)
class _Output:
    """Ids that were generated, and what they have shown of the texts that end them."""

    ids: list[int]
    stop_texts: StopTexts | None
    stopped: bool = False  # a stop is complete; what comes after it does not count

    def copy(self) -> _Output:
        texts = None if self.stop_texts is None else self.stop_texts.copy()
        return _Output(ids=list(self.ids), stop_texts=texts, stopped=self.stopped)


@dataclass(slots=True, kw_only=True)
class _Slice:
    """One dispatch: all of it is dropped together if it fails."""

    output: _Output  # what was kept before it, and what it gave
    tokens_max: int
    fills_cache: bool  # it sends the head of the prompt, and its token does not count
    tokens: int = 0
    reused_blocks: int | None = None


class Generation:
    """A driver's Call for a TokenCall. `result` holds what came of it."""

    judged = True  # an answer without a single token is a fault of the engine

    def __init__(self, request: Request, call: TokenCall) -> None:
        self.result: asyncio.Future[Generated] = asyncio.get_running_loop().create_future()
        self._request = request
        self._call = call
        further = ((each,) for each in call.further_end_ids)
        self._stop_words = (*(word for word in call.stop_words if word), *further)
        texts = None if call.decode is None else StopTexts(call.stop_texts, call.decode)
        self._kept = _Output(ids=[], stop_texts=texts)
        self._slice: _Slice | None = None
        self._told = 0  # ids that `call.tell` has heard

    @property
    def metadata(self) -> Metadata:
        """The caller's, if there is one, and the trace parent of a sampled item."""
        trace = (("traceparent", self._call.traceparent),) if self._call.traceparent else ()
        return (*(self._call.metadata or ()), *trace)

    @property
    def own(self) -> bool:
        """True if no caller stands behind it."""
        return self._call.metadata is None

    @property
    def reused_blocks(self) -> int | None:
        """KV blocks of this dispatch that the engine had in its cache, as it says with its last response."""
        return None if self._slice is None else self._slice.reused_blocks

    @property
    def stop_wanted(self) -> bool:
        """True once a stop is complete: one across the seam of two dispatches only we can see."""
        return self._slice is not None and self._slice.output.stopped

    def request(self, dispatch: Dispatch, request_id: str) -> Any:
        """Prompt and generated ids, and the rest of the budget. Raises BadRequestError, naming the tensor."""
        self._slice = _Slice(
            output=self._kept.copy(),
            tokens_max=dispatch.output_tokens,
            fills_cache=dispatch.prompt_tokens is not None,
        )
        call = self._call
        ids = (*call.prompt_ids, *self._kept.ids)[: dispatch.prompt_tokens]
        request = token_request(self._request.model, ids, dispatch.output_tokens, request_id)
        _add(request, "streaming", "BOOL", True)
        _add(request, "exclude_input_in_output", "BOOL", True)
        _add(request, "return_perf_metrics", "BOOL", True)
        if call.end_id is not None:
            _add(request, "end_id", "INT32", call.end_id)
        if self._stop_words:  # stop texts are not sent: the engine would compare them by ids, and cut elsewhere
            add_word_list(request, "stop_words_list", self._stop_words)
        self._add_sampling(request)
        return request

    def _add_sampling(self, request: Any) -> None:
        sampling, begun = self._call.sampling, len(self._kept.ids)
        drawn = False
        for name, datatype in _SAMPLING.items():
            if (value := getattr(sampling, name)) is not None:
                _add(request, _TENSOR_NAMES.get(name, name), datatype, value)
                drawn = True
        if sampling.min_tokens is not None:
            _add(request, "min_tokens", "INT32", max(sampling.min_tokens - begun, 0))
        if sampling.seed is not None:
            _add(request, "seed", "UINT64", seed_of(sampling.seed, begun))
        elif drawn and begun:  # the engine's random state restarts with each dispatch
            _add(request, "seed", "UINT64", seed_of(0, begun))

    def receive(self, response: Any) -> int:
        """Take in its ids, up to and including the first stop; the rest does not count.

        Raises MalformedAnswerError if they are no token ids, or more than were asked for.
        """
        part = self._running()
        if (reused := wire.output_count(response.infer_response, "kv_cache_reused_blocks")) is not None:
            part.reused_blocks = reused
        if part.fills_cache:
            return 0
        before = part.tokens
        for token in wire.output_ids(response.infer_response):
            if part.output.stopped:
                break
            if part.tokens == part.tokens_max:
                raise MalformedAnswerError(
                    f"the engine sends more than the {part.tokens_max} ids that it was asked for"
                )
            part.output.ids.append(token)
            part.tokens += 1
            part.output.stopped = self._stops(part.output, token)
        if self._request.lane is Lane.ONLINE:  # it has one dispatch, and whoever hears of it hears of its failure
            self._tell(part.output.ids)
        return part.tokens - before

    def _tell(self, ids: Sequence[int]) -> None:
        """Whoever listens hears of those that are new."""
        if self._call.tell is not None and len(ids) > self._told:
            told, self._told = self._told, len(ids)
            self._call.tell(ids[told:])

    def _stops(self, output: _Output, token: int) -> bool:
        """True if this last id completes a stop word, or a stop text."""
        if self._stop_words and ends_with(output.ids, self._stop_words):
            return True
        texts = output.stop_texts
        if texts is None or not texts.push(token):
            return False
        if first_of(self._text(output.ids), self._call.stop_texts) is not None:
            return True
        texts.forget()
        return False

    def ended_by(self) -> EndReason | None:
        """The end id or a stop, if the ids end in one; the length is the driver's to see."""
        part = self._running()
        if part.fills_cache:
            return EndReason.LENGTH
        last = part.output.ids[-1] if part.output.ids else None
        if last in self._call.further_end_ids:
            return EndReason.END_ID
        if part.output.stopped:
            return EndReason.STOP_WORD
        if last is not None and last == self._call.end_id:
            return EndReason.END_ID
        return EndReason.LENGTH if len(part.output.ids) >= self._call.output_tokens_max else None

    def settled(self, event: Terminal, timeline: Timeline, *, over: bool) -> None:
        """Keep what this dispatch gave, or drop it; at the end, the result is known."""
        part, self._slice = self._slice, None
        if part is not None and not isinstance(event, Failed) and (over or self._request.resumable):
            self._kept = part.output
            self._tell(self._kept.ids)
        if not over or self.result.done():
            return
        if isinstance(event, Failed):
            self.result.set_exception(RequestDeadError(event.reason, timeline.attempts - 1))
            return
        try:
            self.result.set_result(self._generated(getattr(event, "reason", EndReason.LENGTH), timeline))
        except Exception as error:  # the tokenizer's: whoever waits hears it
            reason = f"INTERNAL: the output cannot be decoded: {type(error).__name__}"
            self.result.set_exception(RequestDeadError(reason, timeline.attempts))

    def refused(self, outcome: Reject | DeadLetter) -> None:
        """The result is an error."""
        if self.result.done():
            return
        if isinstance(outcome, DeadLetter):
            self.result.set_exception(RequestDeadError(outcome.reason, outcome.attempts))
        else:
            self.result.set_exception(RequestRejectedError(outcome.reason, outcome.message, outcome.retry_after_s))

    def _running(self) -> _Slice:
        assert self._slice is not None  # the driver asks only between `request` and `settled`
        return self._slice

    def _text(self, ids: Sequence[int]) -> str:
        assert self._call.decode is not None
        return self._call.decode(ids)

    def _generated(self, reason: EndReason, line: Timeline) -> Generated:
        now_s = asyncio.get_running_loop().time()
        ids = self._kept.ids
        text = None if self._call.decode is None else self._text(ids)
        if text is not None and (at := first_of(text, self._call.stop_texts)) is not None:
            text, reason = text[:at], EndReason.STOP_WORD
        return Generated(
            output_ids=tuple(ids),
            text=text,
            reason=reason,
            engine=line.engine,
            dispatches=line.dispatches,
            resumed=line.resumed,
            attempts=line.attempts,
            queue_wait_s=line.queue_wait_s,
            first_token_s=line.first_token_s if line.first_token_s is not None else now_s,
            finished_s=now_s,
        )


def ends_with(ids: Sequence[int], words: Sequence[Sequence[int]]) -> bool:
    """True if `ids` end in one of `words`."""
    return any(ids[-1] == word[-1] and tuple(ids[-len(word) :]) == tuple(word) for word in words)


def seed_of(seed: int, tokens_before: int) -> int:
    """The seed of a dispatch that goes on after so many tokens. The first one has the call's own, also when it is
    tried again; each further one another, which only depends on where it begins: with the same seed a resumed text
    would repeat its draws."""
    if not tokens_before:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}/{tokens_before}".encode(), digest_size=8).digest(), "little")


def add_word_list(request: Any, name: str, words: Sequence[Sequence[int]]) -> None:
    """A tensor [1, 2, n] as the engine wants it: the ids of all words in row 0, their end offsets in row 1, then -1."""
    flat = [token for word in words for token in word]
    ends, end = [], 0
    for word in words:
        end += len(word)
        ends.append(end)
    ends += [-1] * (len(flat) - len(ends))
    wire.add_tensor(request, name, "INT32", (*flat, *ends), (1, 2, len(flat)))


def _add(request: Any, name: str, datatype: str, value: Any) -> None:
    wire.add_tensor(request, name, datatype, (value,), (1, 1))
