"""What a gRPC request asks of the scheduler: lane, length, slots. Read from its tensors, which go on unchanged.

A caller asks for the offline lane, names its tenant or states its own objective by `x-lane: offline`, `x-tenant: NAME`
and `ttft_objective_ms: NUMBER`: as a request parameter, or as metadata of the call. The parameter wins.

A tensor in shared memory cannot be read here: what it would say is then estimated from shape and bytes, upwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf
from typing import Any

import grpc

from sidecar.core.work import Lane, Work
from sidecar.errors import BadRequestError, EngineError, ModelRefusesError
from sidecar.frontend.tensor_rules import SHARED_MEMORY, asked_by
from sidecar.triton import wire
from sidecar.triton.encoder import EncoderError
from sidecar.triton.tokenizer import TextTooLongError, Tokens

LANE = "x-lane"
TENANT = "x-tenant"
TTFT_OBJECTIVE = "ttft_objective_ms"
OURS = frozenset({LANE, TENANT, TTFT_OBJECTIVE})
TENANT_CHARACTERS_MAX = 256
SHOWN_CHARACTERS_MAX = 64  # of a value that is refused
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

    def lengths(self, request: Any, beams_max: int | None = None) -> Lengths:
        """How long and how wide a request is. Raises BadRequestError, naming the tensor.

        `beams_max` is what the engine was built for; None = unknown, and left to the engine.
        """
        tensors = {each.name: each for each in request.inputs}
        output_tokens_max = _least_one(request, tensors, "max_tokens" if self.takes_text else "request_output_len")
        prompt_tokens = (
            self._tokens_of_text(request, tensors, output_tokens_max)
            if self.takes_text
            else self._tokens_of_ids(request, tensors)
        )
        if output_tokens_max is None:  # it lies in shared memory, or is missing: then the engine refuses it
            output_tokens_max = max(self.tokens_max - prompt_tokens, 1)
        beams = _least_one(request, tensors, "beam_width") or 1
        if beams_max is not None and beams > beams_max:
            engine = f"model '{self.engine_model}' has at most {beams_max}"
            raise model_refusal(request, f"input 'beam_width' is {beams}; {engine}")
        width = max(beams, _least_one(request, tensors, "num_return_sequences") or 1)
        return Lengths(
            prompt_tokens=prompt_tokens, output_tokens_max=output_tokens_max, sequences=width * _batch(request)
        )

    def _tokens_of_ids(self, request: Any, tensors: Mapping[str, Any]) -> int:
        """The longest prompt of the batch: as `input_lengths` says, which is what the engine reads of `input_ids`."""
        given = tensors.get("input_ids")
        ids = int(given.shape[-1]) if given is not None and given.shape else 0
        if not ids:
            raise model_refusal(
                request, f"input 'input_ids' is missing or empty; model '{self.name}' requires a prompt"
            )
        lengths = _read(request, tensors, "input_lengths", wire.INTEGERS) or (ids,)
        for length in lengths:
            if not 1 <= length <= ids:
                raise model_refusal(request, f"input 'input_lengths' is {length}, but input 'input_ids' holds {ids}")
        return max(lengths)

    def _tokens_of_text(self, request: Any, tensors: Mapping[str, Any], output_tokens_max: int | None) -> int:
        given = tensors.get("text_input")
        if given is not None and SHARED_MEMORY in given.parameters:
            return self._estimate(_bytes_in_shared_memory(given), output_tokens_max)
        texts = _read(request, tensors, "text_input", ("BYTES",)) or ()
        if not texts or not all(texts):
            raise model_refusal(
                request, f"input 'text_input' is missing or empty; model '{self.name}' requires a prompt"
            )
        if self.tokens is None:
            return self._estimate(max(map(len, texts)), output_tokens_max)
        try:
            return max(len(self.tokens.prompt_ids(_text(request, text), self.tokens_max)) for text in texts)
        except TextTooLongError as error:
            raise model_refusal(request, f"input 'text_input': {error}") from None
        except EncoderError as error:
            raise EngineError(str(error), grpc.StatusCode.INTERNAL) from None

    def _estimate(self, text_bytes: int, output_tokens_max: int | None) -> int:
        """An estimate never refuses a text: the engine counts, and refuses, by itself."""
        return max(min(text_bytes // BYTES_PER_TOKEN, self.tokens_max - (output_tokens_max or 1)), 0)


def refusal(request: Any, text: str) -> BadRequestError:
    """An error that begins as Triton's own do."""
    return BadRequestError(asked_by(request.id) + text)


def model_refusal(request: Any, text: str) -> ModelRefusesError:
    """The same for what the model would refuse, were it asked."""
    return ModelRefusesError(asked_by(request.id) + text)


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
    lane, objective_ms = _lane(request, metadata), _ttft_objective_ms(request, metadata)
    _check_priority(request)
    return Work(
        id=work_id,
        lane=lane,
        model=model.engine_model,
        arrived_s=arrived_s,
        prompt_tokens=lengths.prompt_tokens,
        output_tokens_max=lengths.output_tokens_max,
        tenant=tenant_of(request, metadata),
        deadline_s=min(deadline_s, arrived_s + _timeout_s(request)),
        slots=lengths.sequences,
        splits_prompt=False,
        resumable=False,  # its tensors go to the engine as they are, so it runs whole
        prefix_key=_prefix_key(request, model),
        ttft_objective_ms=objective_ms if lane is Lane.ONLINE else 0.0,  # nobody waits for an offline token
    )


def given_by(request: Any, metadata: Iterable[tuple[str, str | bytes]]) -> Mapping[str, str]:
    """The texts of the call's metadata. Raises BadRequestError if they say two things where one is meant."""
    given: dict[str, str] = {}
    for name, value in metadata:
        if isinstance(value, str):
            if name in OURS and given.get(name, value) != value:
                raise refusal(request, f"{name} is given twice: '{_shown(given[name])}' and '{_shown(value)}'")
            given[name] = value
    return given


def tenant_of(request: Any, metadata: Mapping[str, str]) -> str:
    """Whose request it is. Raises BadRequestError if the name is too long to be kept, or cannot be shown."""
    tenant = asked(request, metadata, TENANT) or "default"
    if len(tenant) > TENANT_CHARACTERS_MAX:
        raise refusal(request, f"{TENANT} has {len(tenant)} characters; at most {TENANT_CHARACTERS_MAX} are taken")
    if not tenant.isprintable():  # as for items and for metadata: it becomes a label of metrics
        raise refusal(request, f"{TENANT} must be printable characters")
    return tenant


def asked(request: Any, metadata: Mapping[str, str], name: str) -> str | None:
    """What the caller set, as text, whichever of its types a parameter has."""
    if name not in request.parameters:
        return metadata.get(name)
    parameter = request.parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    return "" if kind is None else str(getattr(parameter, kind))


def _prefix_key(request: Any, model: ScheduledModel) -> str:
    """Equal for prompts that begin alike, so that they meet on the engine whose KV cache knows the beginning."""
    raw = wire.raw_input(request, "text_input" if model.takes_text else "input_ids")
    raw = raw[4:] if model.takes_text else raw  # behind the length of the string
    return blake2b(raw[:PREFIX_BYTES], digest_size=8).hexdigest() if len(raw) >= PREFIX_BYTES else ""


def _lane(request: Any, metadata: Mapping[str, str]) -> Lane:
    lane = asked(request, metadata, LANE)
    if lane is None:
        return Lane.ONLINE
    if lane not in tuple(Lane):
        raise refusal(request, f"{LANE} must be one of {', '.join(Lane)}, not '{_shown(lane)}'")
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
        raise refusal(request, f"{TTFT_OBJECTIVE} must be a number of milliseconds > 0, not '{_shown(text)}'")
    return objective_ms


def _check_priority(request: Any) -> None:
    """Triton's 0 is its default. Levels mean nothing to an engine without any, and here the lanes decide."""
    if "priority" not in request.parameters:
        return
    priority = int(asked(request, {}, "priority") or 0)
    if priority < 0:
        raise BadRequestError("invalid value for 'priority', expected value >= 0.")
    if priority > 0:
        known = f"there are no priority levels here, but the lanes of {LANE}"
        raise refusal(request, f"parameter 'priority' is {priority}: {known}; leave it out, or send 0")


def _timeout_s(request: Any) -> float:
    """How long the request may wait for a slot: Triton's parameter `timeout`, in microseconds. Below 1 = no bound."""
    if "timeout" not in request.parameters:
        return inf
    timeout_us = request.parameters["timeout"].int64_param
    return timeout_us / 1e6 if timeout_us > 0 else inf


def _read(request: Any, tensors: Mapping[str, Any], name: str, datatypes: Sequence[str]) -> Sequence[Any] | None:
    """The values of an input; None if it is not there or lies in shared memory.

    Raises BadRequestError for another datatype: where nobody tells the ModelConfig, nobody has looked at it yet.
    """
    if name not in tensors:
        return None
    if (given := tensors[name].datatype) not in datatypes:
        model = f"model '{request.model_name}' expects '{datatypes[0]}'"
        raise refusal(request, f"inference input '{name}' data-type is '{given}', but {model}")
    return wire.input_values(request, name)


def _least_one(request: Any, tensors: Mapping[str, Any], name: str) -> int | None:
    """The largest value of an input whose values are counts; None as for `_read`."""
    values = _read(request, tensors, name, wire.INTEGERS)
    if not values:
        return None
    if min(values) < 1:
        raise model_refusal(request, f"input '{name}' must be >= 1, not {min(values)}")
    return int(max(values))


def _bytes_in_shared_memory(tensor: Any) -> int:
    name = "shared_memory_byte_size"
    return max(tensor.parameters[name].int64_param, 0) if name in tensor.parameters else 0


def _batch(request: Any) -> int:
    return max((int(each.shape[0]) for each in request.inputs if len(each.shape) > 0), default=1) or 1


def _text(request: Any, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise model_refusal(request, f"input 'text_input' is not UTF-8: {error}") from None


def _shown(value: str) -> str:
    return value if len(value) <= SHOWN_CHARACTERS_MAX else value[:SHOWN_CHARACTERS_MAX] + "…"
