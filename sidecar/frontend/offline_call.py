"""A caller's request for the offline lane as a generation by token ids, so that it runs in slices like any item.

What slices would change, or would leave out, runs whole instead: several sequences, probabilities, guided output,
random draws (their numbering begins anew with each slice), penalties, and whatever the caller says to Triton or to the
model in a parameter.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sidecar.core.request import Request
from sidecar.driver.generation import Generation
from sidecar.frontend import statuses
from sidecar.frontend.caller_request import OURS, CallerRequest, model_refusal
from sidecar.frontend.final_response import OF_IDS, OF_TEXT, final_answer, wants_only
from sidecar.frontend.models import ScheduledModel
from sidecar.frontend.relayed_call import Deliver, Over
from sidecar.frontend.statuses import Booked
from sidecar.token_call import Generated, Sampling, TokenCall
from sidecar.triton import wire
from sidecar.triton.tokenizer import Tokens

# What is understood here, with its datatype: another one is for the engine to refuse.
_COMMON = {
    **dict.fromkeys(("end_id", "pad_id", "min_tokens"), "INT32"),
    "temperature": "FP32",
    "seed": "UINT64",
    "exclude_input_in_output": "BOOL",
}
_OF_IDS = {
    **dict.fromkeys(("input_ids", "input_lengths", "request_output_len", "stop_words_list", "runtime_top_k"), "INT32"),
    "runtime_top_p": "FP32",
    "streaming": "BOOL",
}
_OF_TEXT = {
    **dict.fromkeys(("text_input", "stop_words"), "BYTES"),
    "max_tokens": "INT32",
    "top_k": "INT32",
    "top_p": "FP32",
    "stream": "BOOL",
}
_PARAMETERS = OURS | {wire.EMPTY_FINAL, "timeout", "priority"}  # served here, or refused before


def token_call(asked: CallerRequest, model: ScheduledModel, *, excludes_input: bool) -> TokenCall | None:
    """The request as a TokenCall; None if it must run whole. Raises BadRequestError, naming the tensor.

    `excludes_input` says what the engine does where the caller does not say whether the output begins with the prompt.
    """
    if not _may_be_sliced(asked, model) or not _excludes_input(asked, model, excludes_input):
        return None
    if not model.takes_text:
        return _of_ids(asked)
    if model.tokens is None or (model.tokens.further_end_ids and asked.scalar("min_tokens", 0)):
        return None  # the engine holds back its one end id, and no stop word
    return _of_text(asked, model.tokens, model.tokens_max)


def _may_be_sliced(asked: CallerRequest, model: ScheduledModel) -> bool:
    known = _COMMON | (_OF_TEXT if model.takes_text else _OF_IDS)
    return (
        all(known.get(each.name) == each.datatype and each.shape[:1] == (1,) and each.shared_bytes is None
            for each in asked.tensors)
        and wants_only(asked, OF_TEXT if model.takes_text else OF_IDS)
        and asked.parameters.keys() <= _PARAMETERS
        and not asked.version  # what Triton then answers about versions, it shall answer
        and _greedy(_sampling(asked, "" if model.takes_text else "runtime_"))
    )  # fmt: skip


def _excludes_input(asked: CallerRequest, model: ScheduledModel, by_default: bool) -> bool:
    """True if the output does not begin with the prompt. Streamed responses never do."""
    streams = asked.scalar("stream" if model.takes_text else "streaming", False)
    return streams or bool(asked.scalar("exclude_input_in_output", by_default))


def _greedy(sampling: Sampling) -> bool:
    """True if nothing is drawn, by TensorRT-LLM's defaults: neither top_k nor top_p is top_k 1."""
    return sampling.top_k == 1 or not (sampling.top_k or sampling.top_p)


def _of_ids(asked: CallerRequest) -> TokenCall | None:
    words = _words(asked)
    if words is None:
        return None
    ids = asked.values("input_ids") or ()
    return TokenCall(
        prompt_ids=ids[: asked.scalar("input_lengths", len(ids))],
        output_tokens_max=asked.scalar("request_output_len", 0),
        sampling=_sampling(asked, "runtime_"),
        stop_words=words,
        end_id=asked.scalar("end_id", None),
    )


def _of_text(asked: CallerRequest, tokens: Tokens, tokens_max: int) -> TokenCall:
    try:
        text = asked.scalar("text_input", b"").decode()
        words = [word.decode() for word in asked.values("stop_words") or () if word]
    except UnicodeDecodeError as error:
        raise model_refusal(asked, f"input 'text_input' or 'stop_words' is not UTF-8: {error}") from None
    return TokenCall(
        prompt_ids=tokens.prompt_ids(text, tokens_max),
        output_tokens_max=asked.scalar("max_tokens", 0),
        sampling=_sampling(asked, ""),
        stop_words=tuple(tokens.encode_words(word) for word in words),
        end_id=asked.scalar("end_id", tokens.end_id),
        further_end_ids=() if "end_id" in asked.inputs else tokens.further_end_ids,
    )


def _sampling(asked: CallerRequest, prefix: str) -> Sampling:
    return Sampling(
        temperature=asked.scalar("temperature", None),
        top_k=asked.scalar(f"{prefix}top_k", None),
        top_p=asked.scalar(f"{prefix}top_p", None),
        seed=asked.scalar("seed", None),
        min_tokens=asked.scalar("min_tokens", None),
    )


def _words(asked: CallerRequest) -> tuple[tuple[int, ...], ...] | None:
    """The words of `stop_words_list` [1, 2, n]: ids in the first row, end offsets in the second, padded with -1.

    None if the offsets make no words: then the engine is to refuse them.
    """
    flat = asked.values("stop_words_list") or ()
    half = len(flat) // 2
    ids, ends = flat[:half], [end for end in flat[half:] if end >= 0]
    if ends != sorted(set(ends)) or (ends and not 1 <= ends[0] <= ends[-1] <= half):
        return None
    return tuple(tuple(ids[begin:end]) for begin, end in zip([0, *ends], ends, strict=False))


def sliced_call(
    asked: CallerRequest,
    request: Request,
    call: TokenCall,
    model: ScheduledModel,
    deliver: Deliver,
    over: Over,
    version: str = "",
) -> tuple[Booked, Generation]:
    """A driver's Call that answers with one response, of this version of the model, when all slices are done."""
    booked = Booked(request_id=request.id, caller_id=asked.id)
    generation = Generation(request, call)

    def tell(result: asyncio.Future[Generated]) -> None:
        if result.cancelled():
            return
        try:
            deliver(_response(asked, result.result(), model, version))
        except Exception as error:  # of this request alone, be it ours or the scheduler's
            over(booked, statuses.of_generation(error, booked))
        else:
            over(booked, None)

    generation.result.add_done_callback(tell)
    return booked, generation


def _response(asked: CallerRequest, generated: Generated, model: ScheduledModel, version: str) -> Any:
    ids = generated.output_ids
    output = model.tokens.decode(ids) if model.takes_text and model.tokens is not None else ids
    return final_answer(asked, model.name, version, output)
