"""A caller's request for the offline lane as a generation by token ids, so that it runs in slices like any item.

What slices would change runs whole instead: several sequences, probabilities, guided output, and penalties, which the
engine counts over the output of one call only.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sidecar.core.work import Work
from sidecar.edge import answers, wire
from sidecar.edge.booking import ScheduledModel
from sidecar.edge.calls import Generated, Sampling, TokenCall
from sidecar.edge.errors import BadRequestError
from sidecar.edge.generation import Generation
from sidecar.edge.tokens import Tokens
from sidecar.edge.whole import Booked, Deliver, Over

_COMMON = {"end_id", "pad_id", "temperature", "seed", "min_tokens", "exclude_input_in_output"}
_OF_IDS = {"input_ids", "input_lengths", "request_output_len", "streaming", "stop_words_list"}
_OF_TEXT = {"text_input", "max_tokens", "stream", "stop_words"}


def token_call(request: Any, model: ScheduledModel) -> TokenCall | None:
    """The request as a TokenCall; None if it must run whole. Raises BadRequestError, naming the tensor."""
    top = {"top_k", "top_p"} if model.takes_text else {"runtime_top_k", "runtime_top_p"}
    known = _COMMON | top | (_OF_TEXT if model.takes_text else _OF_IDS)
    if any(tensor.name not in known or tensor.shape[:1] != [1] for tensor in request.inputs):
        return None
    if not wire.scalar(request, "exclude_input_in_output", True) or request.outputs:
        return None
    if not model.takes_text:
        return _of_ids(request)
    return None if model.tokens is None else _of_text(request, model.tokens, model.tokens_max)


def _of_ids(request: Any) -> TokenCall | None:
    ids = wire.input_values(request, "input_ids")
    if ids is None:  # in shared memory
        return None
    return TokenCall(
        prompt_ids=ids,
        output_tokens_max=wire.scalar(request, "request_output_len", 0),
        sampling=_sampling(request, "runtime_"),
        stop_words=_words(wire.input_values(request, "stop_words_list") or ()),
        end_id=wire.scalar(request, "end_id", None),
    )


def _of_text(request: Any, tokens: Tokens, tokens_max: int) -> TokenCall:
    try:
        text = wire.scalar(request, "text_input", b"").decode()
        words = [word.decode() for word in wire.input_values(request, "stop_words") or () if word]
    except UnicodeDecodeError as error:
        raise BadRequestError(f"input 'text_input' or 'stop_words' is not UTF-8: {error}") from None
    return TokenCall(
        prompt_ids=tokens.prompt_ids(text, tokens_max),
        output_tokens_max=wire.scalar(request, "max_tokens", 0),
        sampling=_sampling(request, ""),
        stop_words=tuple(tokens.encode_words(word) for word in words),
        end_id=wire.scalar(request, "end_id", tokens.end_id),
    )


def _sampling(request: Any, prefix: str) -> Sampling:
    return Sampling(
        temperature=wire.scalar(request, "temperature", None),
        top_k=wire.scalar(request, f"{prefix}top_k", None),
        top_p=wire.scalar(request, f"{prefix}top_p", None),
        seed=wire.scalar(request, "seed", None),
        min_tokens=wire.scalar(request, "min_tokens", None),
    )


def _words(flat: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The words of a tensor [1, 2, n]: ids in the first half, end offsets in the second, padded with -1."""
    ids, ends = flat[: len(flat) // 2], [end for end in flat[len(flat) // 2 :] if end > 0]
    return tuple(tuple(ids[begin:end]) for begin, end in zip([0, *ends], ends, strict=False))


def sliced_call(
    request: Any, work: Work, call: TokenCall, model: ScheduledModel, deliver: Deliver, over: Over
) -> tuple[Booked, Generation]:
    """A driver's Call that answers with one response when all slices are done."""
    booked = Booked(work_id=work.id, caller_id=request.id)
    generation = Generation(work, call)

    def tell(result: asyncio.Future[Generated]) -> None:
        if result.cancelled():
            return
        if (error := result.exception()) is not None:
            over(booked, answers.of_generation(error))
            return
        deliver(_response(request.model_name, booked.caller_id, result.result(), model))
        over(booked, None)

    generation.result.add_done_callback(tell)
    return booked, generation


def _response(model_name: str, caller_id: str, generated: Generated, model: ScheduledModel) -> Any:
    answer = wire.empty_final(model_name, caller_id)
    ids = generated.output_ids
    if model.takes_text and model.tokens is not None:
        wire.add_output(answer, "text_output", "BYTES", (model.tokens.decode(ids).encode(),), (1,))
    else:
        wire.add_output(answer, "output_ids", "INT32", ids, (1, 1, len(ids)))
        wire.add_output(answer, "sequence_length", "INT32", (len(ids),), (1, 1))
    return answer
