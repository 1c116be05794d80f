"""The models that callers may ask for, and what a request of one asks of the scheduler: lane, length, slots.

A caller asks for the offline lane, names its tenant or states its own objective by `x-lane: offline`, `x-tenant: NAME`
and `ttft_objective_ms: NUMBER`: as a request parameter, or as metadata of the call. The parameter wins.

A tensor in shared memory cannot be read here: what it would say is then estimated from shape and bytes, upwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf
from typing import Any

import grpc

from sidecar.core.request import Lane, Request
from sidecar.errors import BadRequestError, EngineError
from sidecar.frontend.caller_request import (
    LANE,
    OURS,
    TENANT,
    TTFT_OBJECTIVE,
    CallerRequest,
    asked_by,
    check_datatype,
    model_refusal,
    refusal,
)
from sidecar.frontend.statuses import CallerError
from sidecar.settings.aliases import Aliases, routed
from sidecar.settings.file import EngineEndpoint
from sidecar.triton import wire
from sidecar.triton.encoder import EncoderError
from sidecar.triton.tokenizer import TextTooLongError, Tokens

TENANT_CHARACTERS_MAX = 256
SHOWN_CHARACTERS_MAX = 64  # of a value that is refused
PREFIX_BYTES = 512  # of a prompt: some four blocks of a KV cache
BYTES_PER_TOKEN = 4  # of English text in the common vocabularies; only where no tokenizer is configured


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLengths:
    """What one request takes, per sequence; `sequences` is how many it returns."""

    prompt_tokens: int
    output_tokens_max: int
    sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledModel:
    """A model whose requests the scheduler dispatches. `engine_model` runs the tokens; it differs for an ensemble."""

    name: str
    engine_model: str
    tokens_max: int  # prompt + output of one sequence
    tokens: Tokens | None  # to count a text's tokens

    @property
    def takes_text(self) -> bool:
        """True for text in, text out."""
        return self.name != self.engine_model

    def lengths(self, asked: CallerRequest, beams_max: int | None = None) -> RequestLengths:
        """Return how long and how wide a request is. Raises BadRequestError, naming the tensor.

        `beams_max` is what the engine was built for; None = unknown, and left to the engine.
        """
        output_tokens_max = _least_one(asked, "max_tokens" if self.takes_text else "request_output_len")
        prompt_tokens = (
            self._tokens_of_text(asked, output_tokens_max) if self.takes_text else self._tokens_of_ids(asked)
        )
        if output_tokens_max is None:  # it lies in shared memory, or is missing: then the engine refuses it
            output_tokens_max = max(self.tokens_max - prompt_tokens, 1)
        beams = _least_one(asked, "beam_width") or 1
        if beams_max is not None and beams > beams_max:
            engine = f"model '{self.engine_model}' has at most {beams_max}"
            raise model_refusal(asked, f"input 'beam_width' is {beams}; {engine}")
        width = max(beams, _least_one(asked, "num_return_sequences") or 1)
        return RequestLengths(
            prompt_tokens=prompt_tokens, output_tokens_max=output_tokens_max, sequences=width * (asked.batch or 1)
        )

    def _tokens_of_ids(self, asked: CallerRequest) -> int:
        """The longest prompt of the batch: as `input_lengths` says, which is what the engine reads of `input_ids`."""
        given = asked.inputs.get("input_ids")
        ids = given.shape[-1] if given is not None and given.shape else 0
        if not ids:
            raise model_refusal(asked, f"input 'input_ids' is missing or empty; model '{self.name}' requires a prompt")
        lengths = _read(asked, "input_lengths", wire.INTEGERS) or (ids,)
        for length in lengths:
            if not 1 <= length <= ids:
                raise model_refusal(asked, f"input 'input_lengths' is {length}, but input 'input_ids' holds {ids}")
        return int(max(lengths))

    def _tokens_of_text(self, asked: CallerRequest, output_tokens_max: int | None) -> int:
        given = asked.inputs.get("text_input")
        if given is not None and given.shared_bytes is not None:
            return self._estimate(given.shared_bytes, output_tokens_max)
        texts = _read(asked, "text_input", ("BYTES",)) or ()
        if not texts or not all(texts):
            raise model_refusal(asked, f"input 'text_input' is missing or empty; model '{self.name}' requires a prompt")
        if self.tokens is None:
            return self._estimate(max(map(len, texts)), output_tokens_max)
        try:
            return max(len(self.tokens.prompt_ids(_text(asked, text), self.tokens_max)) for text in texts)
        except TextTooLongError as error:
            raise model_refusal(asked, f"input 'text_input': {error}") from None
        except EncoderError as error:
            raise EngineError(str(error), grpc.StatusCode.INTERNAL) from None

    def _estimate(self, text_bytes: int, output_tokens_max: int | None) -> int:
        """An estimate never refuses a text: the engine counts, and refuses, by itself."""
        return max(min(text_bytes // BYTES_PER_TOKEN, self.tokens_max - (output_tokens_max or 1)), 0)


class Models:
    """The models whose requests are scheduled, by every name that callers may use."""

    def __init__(self, models: Iterable[ScheduledModel], aliases: Aliases) -> None:
        self._models = {model.name: model for model in models}
        self._texts = {model.engine_model: model for model in self._models.values() if model.takes_text}
        self._aliases = aliases

    def __contains__(self, name: str) -> bool:
        return name in self._models or name in self._aliases

    def probable(self, asked: CallerRequest) -> ScheduledModel:
        """The model of that name; for an alias the one of its last rule. All models of an alias have the same tensors,
        so lengths and tensors may be read with it. A text goes to the text model over the engine's."""
        if (model := self._models.get(asked.model)) is not None:
            return model
        return self._over(self._aliases[asked.model][-1].model, asked)

    def final(
        self,
        asked: CallerRequest,
        probable: ScheduledModel,
        lengths: RequestLengths,
        tenant: str,
        header: Callable[[str], str | None],
    ) -> ScheduledModel:
        """Return the model that serves the request."""
        rules = self._aliases.get(asked.model)
        if rules is None:
            return probable
        name = routed(rules, lengths.prompt_tokens, lengths.output_tokens_max, tenant, header)
        return self._over(name, asked)

    def engine_models(self, name: str) -> list[str]:
        """The engines' models that may run requests of that name."""
        if name in self._aliases:
            return [rule.model for rule in self._aliases[name]]
        return [self._models[name].engine_model]

    def named(self, name: str) -> str:
        """Whose metadata, configuration and state are told under `name`: an alias' last model's, text before ids."""
        if name not in self._aliases:
            return name
        engine_model = self._aliases[name][-1].model
        return self._texts.get(engine_model, self._models[engine_model]).name

    def _over(self, engine_model: str, asked: CallerRequest) -> ScheduledModel:
        text_model = self._texts.get(engine_model) if "text_input" in asked.inputs else None
        return text_model or self._models[engine_model]


def serving(engines: Sequence[EngineEndpoint]) -> dict[str, list[str]]:
    """The engines that serve each model, by its name."""
    names: dict[str, list[str]] = {}
    for engine in engines:
        for model in filter(None, (engine.model, engine.text_model)):
            names.setdefault(model, []).append(engine.name)
    return names


def scheduled_models(engines: Sequence[EngineEndpoint], tokens: Tokens | None) -> list[ScheduledModel]:
    """The models whose requests are given slots: the engines' own, and the text models over them."""
    tokens_max: dict[tuple[str, str], int] = {}
    for engine in engines:
        for name in (engine.model, engine.text_model):
            if name is not None:
                key = (name, engine.model)
                tokens_max[key] = max(tokens_max.get(key, 0), engine.tokens_max)
    return [
        ScheduledModel(name=name, engine_model=model, tokens_max=most, tokens=tokens)
        for (name, model), most in sorted(tokens_max.items())
    ]


def request_of(
    asked: CallerRequest,
    model: ScheduledModel,
    lengths: RequestLengths,
    metadata: Mapping[str, str],
    *,
    request_id: str,
    arrived_s: float,
    deadline_s: float,
) -> Request:
    """The request as the scheduler sees it. Raises BadRequestError."""
    lane, objective_ms = _lane(asked, metadata), _ttft_objective_ms(asked, metadata)
    _check_priority(asked)
    return Request(
        id=request_id,
        lane=lane,
        model=model.engine_model,
        arrived_s=arrived_s,
        prompt_tokens=lengths.prompt_tokens,
        output_tokens_max=lengths.output_tokens_max,
        tenant=tenant_of(asked, metadata),
        deadline_s=min(deadline_s, arrived_s + _timeout_s(asked)),
        slots=lengths.sequences,
        splits_prompt=False,
        resumable=False,  # its tensors go to the engine as they are, so it runs whole
        prefix_key=_prefix_key(asked, model),
        ttft_objective_ms=objective_ms if lane is Lane.ONLINE else 0.0,  # nobody waits for an offline token
    )


def given_by(asked: CallerRequest, metadata: Iterable[tuple[str, str | bytes]]) -> Mapping[str, str]:
    """The texts of the call's metadata. Raises BadRequestError if they say two things where one is meant."""
    given: dict[str, str] = {}
    for name, value in metadata:
        if isinstance(value, str):
            if name in OURS and given.get(name, value) != value:
                raise refusal(asked, f"{name} is given twice: '{_shown(given[name])}' and '{_shown(value)}'")
            given[name] = value
    return given


def tenant_of(asked: CallerRequest, metadata: Mapping[str, str]) -> str:
    """Return whose request it is. Raises BadRequestError if the name is too long to be kept, or cannot be shown."""
    tenant = stated(asked, metadata, TENANT) or "default"
    if len(tenant) > TENANT_CHARACTERS_MAX:
        raise refusal(asked, f"{TENANT} has {len(tenant)} characters; at most {TENANT_CHARACTERS_MAX} are taken")
    if not tenant.isprintable():  # as for items and for metadata: it becomes a label of metrics
        raise refusal(asked, f"{TENANT} must be printable characters")
    return tenant


def stated(asked: CallerRequest, metadata: Mapping[str, str], name: str) -> str | None:
    """Return what the caller set, as text, whichever of its types a parameter has."""
    if (parameter := asked.parameters.get(name)) is None:
        return metadata.get(name)
    return "" if parameter.kind is None else str(parameter.value)


def _prefix_key(asked: CallerRequest, model: ScheduledModel) -> str:
    """Equal for prompts that begin alike, so that they meet on the engine whose KV cache knows the beginning."""
    raw = asked.raw("text_input" if model.takes_text else "input_ids")
    raw = raw[4:] if model.takes_text else raw  # behind the length of the string
    return blake2b(raw[:PREFIX_BYTES], digest_size=8).hexdigest() if len(raw) >= PREFIX_BYTES else ""


def _lane(asked: CallerRequest, metadata: Mapping[str, str]) -> Lane:
    lane = stated(asked, metadata, LANE)
    if lane is None:
        return Lane.ONLINE
    if lane not in tuple(Lane):
        raise refusal(asked, f"{LANE} must be one of {', '.join(Lane)}, not '{_shown(lane)}'")
    return Lane(lane)


def _ttft_objective_ms(asked: CallerRequest, metadata: Mapping[str, str]) -> float:
    text = stated(asked, metadata, TTFT_OBJECTIVE)
    if text is None:
        return 0.0
    try:
        objective_ms = float(text)
    except ValueError:
        objective_ms = -1.0
    if not 0 < objective_ms < inf:
        raise refusal(asked, f"{TTFT_OBJECTIVE} must be a number of milliseconds > 0, not '{_shown(text)}'")
    return objective_ms


def _check_priority(asked: CallerRequest) -> None:
    """Triton's 0 is its default. Levels mean nothing to an engine without any, and here the lanes decide."""
    priority = int(stated(asked, {}, "priority") or 0)
    if priority < 0:
        raise BadRequestError("invalid value for 'priority', expected value >= 0.")
    if priority > 0:
        known = f"there are no priority levels here, but the lanes of {LANE}"
        raise refusal(asked, f"parameter 'priority' is {priority}: {known}; leave it out, or send 0")


def _timeout_s(asked: CallerRequest) -> float:
    """How long the request may wait for a slot: Triton's parameter `timeout`, in microseconds. Below 1 = no bound."""
    parameter = asked.parameters.get("timeout")
    timeout_us = 0 if parameter is None or parameter.kind != "int64_param" else parameter.value
    return timeout_us / 1e6 if timeout_us > 0 else inf


def check_joinable(asked: CallerRequest) -> None:
    """Raise CallerError for a request whose responses are not parts of one: each sequence gets its own.

    Nor are those that the engine writes over each other in shared memory, or makes classes of one by one.
    """
    for name, count in (
        ("num_return_sequences", asked.scalar("num_return_sequences", 1)),
        ("the batch size", asked.batch),
    ):
        if count > 1:
            raise _not_one(asked, f"{name} is {count}")
    if not _may_stream(asked):
        return
    if shared := [output.name for output in asked.outputs if output.shared]:
        raise _not_one(asked, f"output '{shared[0]}' of a streamed request is to lie in shared memory")
    if classes := asked.classified:
        raise _not_one(asked, f"of output '{classes[0]}' of a streamed request classes are asked for")


def _not_one(asked: CallerRequest, why: str) -> CallerError:
    text = f"ModelInfer gives one response, but {why}: ask by ModelStreamInfer"
    return CallerError(grpc.StatusCode.UNIMPLEMENTED, asked_by(asked.id) + text)


def _may_stream(asked: CallerRequest) -> bool:
    """True if the engine is asked to answer token by token, or may be: what lies in shared memory cannot be read."""
    found = [asked.inputs[name] for name in ("stream", "streaming") if name in asked.inputs]
    return any(each.shared_bytes is not None or any(asked.values(each.name) or ()) for each in found)


def _read(asked: CallerRequest, name: str, datatypes: Sequence[str]) -> tuple[Any, ...] | None:
    """The values of an input; None if it is absent or lies in shared memory. Raises BadRequestError, naming it."""
    if (tensor := asked.inputs.get(name)) is None:
        return None
    check_datatype(asked, tensor, datatypes)
    return asked.values(name)


def _least_one(asked: CallerRequest, name: str) -> int | None:
    """The largest value of an input whose values are counts; None if it is absent or lies in shared memory."""
    values = _read(asked, name, wire.INTEGERS)
    if not values:
        return None
    if min(values) < 1:
        raise model_refusal(asked, f"input '{name}' must be >= 1, not {min(values)}")
    return int(max(values))


def _text(asked: CallerRequest, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise model_refusal(asked, f"input 'text_input' is not UTF-8: {error}") from None


def _shown(value: str) -> str:
    return value if len(value) <= SHOWN_CHARACTERS_MAX else value[:SHOWN_CHARACTERS_MAX] + "…"
