"""The description of each model, so that a wrong tensor is refused here, by its name.

A description is fetched when it is first needed, used on while nobody tells, and fetched anew in doubt.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2

from sidecar.errors import BadRequestError, EngineError, UnknownModelError
from sidecar.frontend.caller_request import CLASSES, DATATYPES, CallerRequest, InputTensor, asked_by, dims

logger = logging.getLogger(__name__)
AGE_MAX_S = 60.0  # a model may be loaded anew without our knowing; one small call a minute costs nothing
FRESH_S = 1.0  # so young a description is not fetched again, however many requests do not fit it
RETRY_S = 10.0  # after a fetch failed: requests do not wait for one failing fetch after another
VERSION_CHARACTERS_MAX = 64  # of a version that is refused: a status has to fit into gRPC's trailers
_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRule:
    """One input. `dims` are those on the wire, the batch dimension included; -1 = any."""

    datatype: str
    dims: tuple[int, ...]
    optional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSchema:
    """The inputs and outputs of one model."""

    model: str
    inputs: Mapping[str, InputRule]
    outputs: Mapping[str, str]  # the datatype of each
    batch_max: int = 0  # 0 = its tensors have no batch dimension
    versions: tuple[int, ...] = ()  # that Triton serves, the one that it takes by itself last; none = unknown
    beams_max: int | None = None  # None = unknown
    excludes_input: bool = False  # if a request does not say; TensorRT-LLM's default

    @classmethod
    def of(cls, config: Any, versions: Sequence[str] = ()) -> ModelSchema:
        """From the `config` of a ModelConfigResponse and the `versions` of a ModelMetadataResponse."""
        values = {key: each.string_value for key, each in config.parameters.items()}  # an unfilled ${…} counts as unset
        beams = values.get("max_beam_width", "")
        batch = (-1,) if config.max_batch_size > 0 else ()
        return cls(
            model=config.name,
            inputs={
                each.name: InputRule(
                    datatype=_datatype(each.data_type), dims=(*batch, *each.dims), optional=each.optional
                )
                for each in config.input
            },
            outputs={each.name: _datatype(each.data_type) for each in config.output},
            batch_max=config.max_batch_size,
            versions=tuple(sorted(map(int, versions))),
            beams_max=int(beams) if beams.isdecimal() else None,
            excludes_input=values.get("exclude_input_in_output", "").lower() == "true",
        )

    def check(self, asked: CallerRequest) -> None:
        """Raise BadRequestError, naming the tensor, unless the inputs and outputs of the request fit this model.

        Texts and order are Triton's (core: src/infer_request.cc). `check_well_formed` checks what needs no ModelConfig.
        """
        by, model = asked_by(asked.id), self.model
        self._check_version(asked.version)
        for tensor in asked.tensors:
            if tensor.name not in self.inputs:
                raise BadRequestError(f"unexpected inference input '{tensor.name}' for model '{model}'")
        for output in asked.outputs:
            if output.name not in self.outputs:
                raise BadRequestError(f"unexpected inference output '{output.name}' for model '{model}'")
        if self.batch_max:
            self._check_batch(by, asked.tensors)
        for tensor in asked.tensors:
            self._check_input(by, tensor, self.inputs[tensor.name])
        self._check_missing(by, [tensor.name for tensor in asked.tensors])

    def check_classes(self, outputs: Collection[str]) -> None:
        """Raise BadRequestError if one of these outputs holds texts: Triton cannot make classes of those.

        Asked to, it ends with a segmentation fault, and every other request with it (measured with 2.51).
        """
        for name in outputs:
            if self.outputs.get(name) == "BYTES":
                raise BadRequestError(
                    f"output '{name}' of model '{self.model}' holds texts: the parameter '{CLASSES}' cannot be served"
                )

    @property
    def version(self) -> str:
        """The version that answers a request which names none; "" = unknown."""
        return str(self.versions[-1]) if self.versions else ""

    def _check_version(self, text: str) -> None:
        """As Triton reads it: a number, whatever stands behind it. None = the latest."""
        if not text:
            return
        number = re.match(r"[ \t-\r]*([+-]?)0*([0-9]+)", text)
        # One of more digits does not fit 64 bits, and Python would not read one of some thousands.
        asked = None if number is None or len(number[2]) > 19 else int(number[1] + number[2])
        if asked is None or not -(2**63) <= asked < 2**63:
            cut = text if len(text) <= VERSION_CHARACTERS_MAX else text[:VERSION_CHARACTERS_MAX] + "…"
            shown = f"failed to get model version from specified version string '{cut}' (details: stol)"
            raise BadRequestError(f"{shown}, version should be an integral value > 0")
        if asked < 1:
            raise BadRequestError(f"invalid model version specified '{text}' , version should be an integral value > 0")
        if self.versions and asked not in self.versions:
            raise UnknownModelError(f"Request for unknown model: '{self.model}' version {asked} is not found")

    def _check_missing(self, by: str, given: Sequence[str]) -> None:
        required = [name for name, rule in self.inputs.items() if not rule.optional]
        missing = [name for name in required if name not in given]
        if not missing:
            return
        bounds = f"number of inputs between {len(required)} and {len(self.inputs)}"
        expected = f"{len(required)} inputs" if len(required) == len(self.inputs) else bounds
        raise BadRequestError(
            f"{by}expected {expected} but got {len(given)} inputs for model '{self.model}'. Got input(s) "
            f"{_names(given)}, but missing required input(s) {_names(missing)}. Please provide all required input(s)."
        )

    def _check_batch(self, by: str, tensors: Sequence[InputTensor]) -> None:
        for tensor in tensors:
            if not tensor.shape:
                raise BadRequestError(
                    f"{by}input '{tensor.name}' has no shape but model requires batch dimension for '{self.model}'"
                )
        counts = Counter(tensor.shape[0] for tensor in tensors)
        if len(counts) > 1:
            ((usual, _),) = counts.most_common(1)
            odd = next(tensor.name for tensor in tensors if tensor.shape[0] != usual)
            raise BadRequestError(f"{by}input '{odd}' batch size does not match other inputs for '{self.model}'")
        if any(not 1 <= batch <= self.batch_max for batch in counts):
            bound = f"<= {self.batch_max}" if max(counts) > 0 else f">= 1, not {max(counts)},"
            raise BadRequestError(f"{by}inference request batch-size must be {bound} for '{self.model}'")

    def _check_input(self, by: str, tensor: InputTensor, rule: InputRule) -> None:
        if tensor.datatype != rule.datatype:
            given = tensor.datatype if tensor.datatype in DATATYPES else "<invalid>"
            raise BadRequestError(
                f"{by}inference input '{tensor.name}' data-type is '{given}', but model '{self.model}' expects "
                f"'{rule.datatype}'"
            )
        shape = tensor.shape
        if len(shape) != len(rule.dims) or any(
            got != want for got, want in zip(shape, rule.dims, strict=True) if want != -1 and got >= 0
        ):
            raise BadRequestError(
                f"{by}unexpected shape for input '{tensor.name}' for model '{self.model}'. Expected {dims(rule.dims)}, "
                f"got {dims(shape)}. {_BATCH_NOTE if self.batch_max else ''}"
            )


@dataclass(slots=True)
class _Known:
    """What is known of one model, and when it may be asked for again."""

    schema: ModelSchema | None = None
    old_at_s: float = -inf  # from then on it is asked for anew
    not_before_s: float = -inf  # until then nobody is asked
    fault: str = ""  # why the last fetch failed, as it was logged
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)


class Schemas:
    """Checks requests against the models' descriptions. Without one Triton alone checks, as it does anyway.

    `fetch` asks an engine, in bounded time, and raises EngineError; `may_ask` says whether an engine of a model is up.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[ModelSchema]],
        may_ask: Callable[[str], bool],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._may_ask = may_ask
        self._now_s = now_s
        self._known: dict[str, _Known] = {}

    async def check(self, asked: CallerRequest, model: str) -> None:
        """Raise BadRequestError, naming the tensor, unless the request fits `model`.

        A description that refuses a request may be older than the model: it is fetched anew before it is believed.
        """
        known = self._known.setdefault(model, _Known())
        schema = await self._current(model, known)
        if schema is None:
            return
        try:
            schema.check(asked)
        except BadRequestError:
            await self._look(model, known, schema)
            if known.schema is None or known.schema is schema:
                raise
            known.schema.check(asked)

    async def check_classes(self, asked: CallerRequest, model: str) -> None:
        """Raise BadRequestError if the request wants classes of an output that holds texts.

        Raises EngineError if no engine tells what it holds. An unknown model is for Triton to refuse.
        """
        outputs = asked.classified
        if not outputs:
            return
        try:
            (await self._fetch(model)).check_classes(outputs)
        except EngineError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise

    async def of(self, model: str) -> ModelSchema | None:
        """The description of a model; None while nobody tells."""
        return await self._current(model, self._known.setdefault(model, _Known()))

    def doubt(self, model: str = "") -> None:
        """The model, or any if none is named, may have changed: its description is fetched anew when next needed."""
        for known in [self._known[model]] if model in self._known else [] if model else self._known.values():
            known.old_at_s = -inf
            if not model:
                known.not_before_s = -inf

    async def _current(self, model: str, known: _Known) -> ModelSchema | None:
        """Waits only while nothing is known yet, or for a fetch of its own: one fetch for all who wait."""
        old = self._now_s() >= known.old_at_s
        if old and (known.schema is None or not known.fetching.locked()):
            await self._look(model, known, known.schema)
        return known.schema

    async def _look(self, model: str, known: _Known, before: ModelSchema | None) -> None:
        """The description has been fetched, by us or by another who waited, if anybody tells."""
        async with known.fetching:  # cancelled: the next one who waits fetches
            if known.schema is not before or self._now_s() < known.not_before_s or not self._may_ask(model):
                return
            try:
                known.schema = await self._fetch(model)
            except EngineError as error:
                known.not_before_s = self._now_s() + RETRY_S
                if known.fault != str(error):
                    known.fault = str(error)
                    use = "an older description is used" if known.schema else "Triton alone checks its requests"
                    logger.warning("model %s: no ModelConfig (%s); %s", model, known.fault, use)
                return
            now_s = self._now_s()
            known.old_at_s, known.not_before_s, known.fault = now_s + AGE_MAX_S, now_s + FRESH_S, ""


def _names(names: Sequence[str]) -> str:
    quoted = ",".join(f"'{name}'" for name in names)
    return f"[{quoted}]"


def _datatype(value: int) -> str:
    name = model_config_pb2.DataType.Name(value).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name
