"""One generation by token ids, in as many dispatches as it takes: the ids joined, the stop words found across seams.

Each further dispatch sends the exact ids so far, prompt and generated, and asks for fewer: resuming is then one prefix
match in the engine's KV cache, and never a tokenisation anew.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from sidecar.core.events import DeadLetter, Dispatch, Failed, Reject
from sidecar.core.work import EndReason, Work
from sidecar.edge import wire
from sidecar.edge.calls import Generated, TokenCall, WorkDeadError, WorkRejectedError
from sidecar.edge.engine_client import Metadata, token_request
from sidecar.edge.ports import Terminal, Timeline

_SAMPLING = {
    "temperature": "FP32",
    "top_k": "INT32",
    "top_p": "FP32",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
}
_TENSOR_NAMES = {"top_k": "runtime_top_k", "top_p": "runtime_top_p"}


class Generation:
    """A driver's Call for a TokenCall. `result` holds what came of it."""

    def __init__(self, work: Work, call: TokenCall) -> None:
        self.result: asyncio.Future[Generated] = asyncio.get_running_loop().create_future()
        self._work = work
        self._call = call
        self._ids: list[int] = []
        self._ids_before = 0  # how many of them stood when this dispatch began
        self._fills_cache = False  # this dispatch sends the head of the prompt, and its token does not count
        self.reused_blocks: int | None = None  # of this dispatch, as the engine says with its last response
        self.stop_wanted = False  # a stop word is complete: one across the seam of two dispatches only we can see
        self._dispatches = 0
        self._stop_words = tuple(word for word in call.stop_words if word)

    @property
    def metadata(self) -> Metadata:
        """The caller's, if there is one, and the trace parent of a sampled item."""
        trace = (("traceparent", self._call.traceparent),) if self._call.traceparent else ()
        return (*(self._call.metadata or ()), *trace)

    @property
    def own(self) -> bool:
        """True if no caller stands behind it."""
        return self._call.metadata is None

    def request(self, dispatch: Dispatch, request_id: str) -> Any:
        """Prompt and generated ids, and the rest of the budget."""
        if not self._work.resumable:
            self._ids.clear()
        self._ids_before = len(self._ids)
        self._dispatches += dispatch.prompt_tokens is None  # a piece of the prompt draws nothing that is kept
        call = self._call
        self._fills_cache = dispatch.prompt_tokens is not None
        ids = (*call.prompt_ids, *self._ids)[: dispatch.prompt_tokens]
        request = token_request(self._work.model, ids, dispatch.output_tokens, request_id)
        _add(request, "streaming", "BOOL", True)
        _add(request, "exclude_input_in_output", "BOOL", True)
        _add(request, "return_perf_metrics", "BOOL", True)
        self.reused_blocks = None
        if call.end_id is not None:
            _add(request, "end_id", "INT32", call.end_id)
        if self._stop_words:
            add_word_list(request, "stop_words_list", self._stop_words)
        self._add_sampling(request)
        return request

    def _add_sampling(self, request: Any) -> None:
        sampling = self._call.sampling
        for name, datatype in _SAMPLING.items():
            if (value := getattr(sampling, name)) is not None:
                _add(request, _TENSOR_NAMES.get(name, name), datatype, value)
        if sampling.min_tokens is not None:
            _add(request, "min_tokens", "INT32", max(sampling.min_tokens - len(self._ids), 0))
        if sampling.seed is not None:  # the engine's random state restarts with each dispatch
            _add(request, "seed", "UINT64", seed_of(sampling.seed, self._dispatches))

    def receive(self, response: Any) -> int:
        """Append its ids, up to and including the first stop word; the rest does not count."""
        if reused := wire.output_values(response.infer_response, "kv_cache_reused_blocks"):
            self.reused_blocks = int(reused[0])
        if self._fills_cache:
            return 0
        before = len(self._ids)
        for token in wire.output_values(response.infer_response, "output_ids") or ():
            if self.stop_wanted:
                break
            self._ids.append(token)
            self.stop_wanted = ends_with(self._ids, self._stop_words)
        return len(self._ids) - before

    def ended_by(self) -> EndReason | None:
        """The end id or a stop word, if the ids end in one; the length is the driver's to see."""
        if self._fills_cache:
            return EndReason.LENGTH
        if self.stop_wanted:
            return EndReason.STOP_WORD
        if self._ids and self._ids[-1] == self._call.end_id:
            return EndReason.END_ID
        return EndReason.LENGTH if len(self._ids) >= self._call.output_tokens_max else None

    def settled(self, event: Terminal, timeline: Timeline, *, over: bool) -> None:
        """Keep or drop the ids of this dispatch; at the end, the result is known."""
        if isinstance(event, Failed):
            del self._ids[self._ids_before :]
        elif over and not self.result.done():
            self.result.set_result(self._generated(getattr(event, "reason", EndReason.LENGTH), timeline))

    def refused(self, action: Reject | DeadLetter) -> None:
        """The result is an error."""
        if self.result.done():
            return
        if isinstance(action, DeadLetter):
            self.result.set_exception(WorkDeadError(action.reason, action.attempts))
        else:
            self.result.set_exception(WorkRejectedError(action.reason, action.message, action.retry_after_s))

    def _generated(self, reason: EndReason, line: Timeline) -> Generated:
        now_s = asyncio.get_running_loop().time()
        text = None if self._call.decode is None else self._call.decode(self._ids)
        if text is not None and (at := first_of(text, self._call.stop_texts)) is not None:
            text, reason = text[:at], EndReason.STOP_WORD
        return Generated(
            output_ids=tuple(self._ids),
            text=text,
            reason=reason,
            engine=line.engine,
            grants=line.grants,
            resumed=line.resumed,
            attempts=line.attempts,
            queue_wait_s=line.queue_wait_s,
            first_token_s=line.first_token_s if line.first_token_s is not None else now_s,
            finished_s=now_s,
        )


def first_of(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of `stops` begins in `text`; None if none is in it."""
    return min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=None)


def ends_with(ids: Sequence[int], words: Sequence[Sequence[int]]) -> bool:
    """True if `ids` end in one of `words`."""
    return any(ids[-1] == word[-1] and tuple(ids[-len(word) :]) == tuple(word) for word in words)


def seed_of(seed: int, dispatch: int) -> int:
    """The seed itself for the first dispatch, another for each further one, else a resumed text repeats its draws."""
    if dispatch == 1:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}/{dispatch}".encode(), digest_size=8).digest(), "little")


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
