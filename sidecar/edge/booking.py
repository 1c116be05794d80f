"""What a gRPC request asks of the scheduler: lane, length, slots. Read from its tensors, which go on unchanged.

A caller asks for the offline lane, names its tenant or states its own objective by `x-lane: offline`, `x-tenant: NAME`
and `ttft_objective_ms: NUMBER`: as a request parameter, or as metadata of the call. The parameter wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import inf
from typing import Any

import grpc

from sidecar.core.work import Lane, Work
from sidecar.edge import wire
from sidecar.edge.encoder import EncoderError
from sidecar.edge.errors import BadRequestError, EngineError
from sidecar.edge.tokens import TextTooLongError, Tokens

LANE = "x-lane"
TENANT = "x-tenant"
TTFT_OBJECTIVE = "ttft_objective_ms"
PREFIX_BYTES = 512  # of a prompt: some four blocks of a KV cache
BYTES_PER_TOKEN = 4  # of English text in the common vocabularies; only where no tokenizer is configured


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What one request takes, per sequence; `sequences` is how many it returns."""

    prompt_tokens: int
    output_tokens_max: int
    sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledModel:
    """A model whose requests the scheduler grants. `engine_model` runs the tokens; it differs for an ensemble."""

    name: str
    engine_model: str
    tokens_max: int  # prompt + output of one sequence
    tokens: Tokens | None  # to count a text's tokens

    @property
    def takes_text(self) -> bool:
        """True for text in, text out."""
        return self.name != self.engine_model

    def lengths(self, request: Any) -> Lengths:
        """How long and how wide a request is. Raises BadRequestError, naming the tensor."""
        output_name = "max_tokens" if self.takes_text else "request_output_len"
        output_tokens_max = wire.scalar(request, output_name, 0)
        if output_tokens_max < 1:
            raise BadRequestError(f"input '{output_name}' must be >= 1, not {output_tokens_max}")
        width = max(wire.scalar(request, "beam_width", 1), wire.scalar(request, "num_return_sequences", 1), 1)
        return Lengths(
            prompt_tokens=self._prompt_tokens(request, output_tokens_max),
            output_tokens_max=output_tokens_max,
            sequences=width * _batch(request),
        )

    def _prompt_tokens(self, request: Any, output_tokens_max: int) -> int:
        if not self.takes_text:
            widths = [int(each.shape[-1]) for each in request.inputs if each.name == "input_ids"]
            if not widths or not widths[0]:
                raise BadRequestError(f"input 'input_ids' is missing or empty; model '{self.name}' requires it")
            return widths[0]
        texts = wire.input_values(request, "text_input") or ()
        if self.tokens is None:  # an estimate never refuses a text: the engine counts, and refuses, by itself
            estimate = sum(len(text) for text in texts) // BYTES_PER_TOKEN
            return min(estimate, max(self.tokens_max - output_tokens_max, 0))
        try:
            return max((len(self.tokens.prompt_ids(_text(text), self.tokens_max)) for text in texts), default=0)
        except TextTooLongError as error:
            raise BadRequestError(f"input 'text_input': {error}") from None
        except EncoderError as error:
            raise EngineError(str(error), grpc.StatusCode.INTERNAL) from None


def work_of(
    request: Any,
    model: ScheduledModel,
    lengths: Lengths,
    metadata: Mapping[str, str],
    *,
    work_id: str,
    arrived_s: float,
    deadline_s: float,
) -> Work:
    """The request as the scheduler sees it. Raises BadRequestError."""
    lane = _lane(request, metadata)
    return Work(
        id=work_id,
        lane=lane,
        model=model.engine_model,
        arrived_s=arrived_s,
        prompt_tokens=lengths.prompt_tokens,
        output_tokens_max=lengths.output_tokens_max,
        tenant=tenant_of(request, metadata),
        deadline_s=deadline_s,
        slots=lengths.sequences,
        resumable=False,  # its tensors go to the engine as they are, so it runs whole
        prefix_key=_prefix_key(request, model),
        ttft_objective_ms=_ttft_objective_ms(request, metadata) if lane is Lane.ONLINE else 0.0,
    )


def tenant_of(request: Any, metadata: Mapping[str, str]) -> str:
    """Whose request it is."""
    return asked(request, metadata, TENANT) or "default"


def _prefix_key(request: Any, model: ScheduledModel) -> str:
    """Equal for prompts that begin alike, so that they meet on the engine whose KV cache knows the beginning."""
    raw = wire.raw_input(request, "text_input" if model.takes_text else "input_ids")
    raw = raw[4:] if model.takes_text else raw  # behind the length of the string
    return blake2b(raw[:PREFIX_BYTES], digest_size=8).hexdigest() if len(raw) >= PREFIX_BYTES else ""


def _lane(request: Any, metadata: Mapping[str, str]) -> Lane:
    lane = asked(request, metadata, LANE) or Lane.ONLINE
    if lane not in tuple(Lane):
        raise BadRequestError(f"{LANE} must be one of {', '.join(Lane)}, not '{lane}'")
    return Lane(lane)


def _ttft_objective_ms(request: Any, metadata: Mapping[str, str]) -> float:
    text = asked(request, metadata, TTFT_OBJECTIVE)
    if text is None:
        return 0.0
    try:
        objective_ms = float(text)
    except ValueError:
        objective_ms = -1.0
    if not 0 < objective_ms < inf:
        raise BadRequestError(f"{TTFT_OBJECTIVE} must be a number of milliseconds > 0, not '{text}'")
    return objective_ms


def asked(request: Any, metadata: Mapping[str, str], name: str) -> str | None:
    """What the caller set, as text, whichever of its types a parameter has."""
    if name not in request.parameters:
        return metadata.get(name)
    parameter = request.parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    return "" if kind is None else str(getattr(parameter, kind))


def _batch(request: Any) -> int:
    return max((int(each.shape[0]) for each in request.inputs if len(each.shape) > 0), default=1) or 1


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadRequestError(f"input 'text_input' is not UTF-8: {error}") from None
