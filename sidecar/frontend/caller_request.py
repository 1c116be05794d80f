"""A caller's request, read once, and what Triton takes as one: each input once, with as much as its shape states.

Lane, length and slots of a request are read from shapes and values, so a request whose shape states five ids must not
carry two hundred thousand. The checks here need no ModelConfig; what does stands in `schemas.py`. Texts and their order
are those of Triton 2.51 (server: src/grpc/infer_handler.cc, core: src/infer_request.cc), so that a caller who changed
only the address reads what it read before.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from sidecar.errors import BadRequestError, ModelRefusesError
from sidecar.triton import wire

LANE = "x-lane"
TENANT = "x-tenant"
TTFT_OBJECTIVE = "ttft_objective_ms"
OURS = frozenset({LANE, TENANT, TTFT_OBJECTIVE})  # parameters that are served here, and that Triton does not get
CLASSES = "classification"  # the parameter of an output, of Triton's classification extension
_SHARED_MEMORY = "shared_memory_region"
_SHARED_SIZE = "shared_memory_byte_size"
_ELEMENT_BYTES = {
    **dict.fromkeys(("BOOL", "UINT8", "INT8"), 1),
    **dict.fromkeys(("UINT16", "INT16", "FP16", "BF16"), 2),
    **dict.fromkeys(("UINT32", "INT32", "FP32"), 4),
    **dict.fromkeys(("UINT64", "INT64", "FP64"), 8),
}
DATATYPES = frozenset({*_ELEMENT_BYTES, "BYTES"})
_TYPED = {  # field of `contents` → what may stand in it; the first is what Triton calls a wrong one
    "bool_contents": ("BOOL",),
    "int_contents": ("INT32", "INT16", "INT8"),
    "int64_contents": ("INT64",),
    "uint_contents": ("UINT32", "UINT16", "UINT8"),
    "uint64_contents": ("UINT64",),
    "fp32_contents": ("FP32",),
    "fp64_contents": ("FP64",),
    "bytes_contents": ("BYTES",),
}
_PARAMETERS = {  # reserved by Triton: the fields of InferParameter that may carry each
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    wire.EMPTY_FINAL: ("bool_param",),
}
_FREE = ("int64_param", "bool_param", "string_param", "double_param")  # for all others
_ID_CHARACTERS_MAX = 256  # of the caller's id in a text: a status has to fit into gRPC's trailers


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """What a caller set. `kind` is the field of the InferParameter that holds it; None if no field does."""

    kind: str | None
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTensor:
    """One input, without its values."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    shared_bytes: int | None  # its size in shared memory, as the caller says; None = it does not lie there
    contents: Any  # its typed contents; None = it has none
    raw_at: int  # where its bytes stand in `raw_input_contents`, if they stand there


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One output that the caller asks for."""

    name: str
    plain: bool  # without a parameter, so it is wanted as it is
    shared: bool  # the engine is to write it into shared memory
    classified: bool  # its most likely classes are wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerRequest:
    """One ModelInferRequest, as its caller sent it. Only `for_engine` changes the message behind it."""

    id: str
    model: str  # as the caller names it, which may be an alias
    version: str  # "" = none is named
    tensors: tuple[InputTensor, ...]  # the inputs, in order
    inputs: Mapping[str, InputTensor]  # the first one of each name
    outputs: tuple[Output, ...]
    parameters: Mapping[str, Parameter]
    size: int  # in bytes
    message: Any = field(repr=False)

    @property
    def batch(self) -> int:
        """The largest first dimension of all inputs; 1 without any."""
        return max((each.shape[0] for each in self.tensors if each.shape), default=1)

    @property
    def classified(self) -> list[str]:
        """The outputs of which the caller wants the most likely classes."""
        return [each.name for each in self.outputs if each.classified]

    def raw(self, name: str) -> bytes:
        """Return the raw bytes of an input; empty if they stand elsewhere."""
        tensor, raw = self.inputs.get(name), self.message.raw_input_contents
        if tensor is None or tensor.shared_bytes is not None or tensor.raw_at >= len(raw):
            return b""
        return bytes(raw[tensor.raw_at])

    def values(self, name: str) -> tuple[Any, ...] | None:
        """Return the values of an input; None if it is absent or lies in shared memory.

        Raises BadRequestError, naming the tensor, if its bytes do not fit its datatype.
        """
        tensor, raw = self.inputs.get(name), self.message.raw_input_contents
        if tensor is None or tensor.shared_bytes is not None:
            return None
        try:
            if tensor.raw_at < len(raw):
                return wire.unpack(tensor.datatype, raw[tensor.raw_at])
            return wire.typed_values(tensor.datatype, tensor.contents)
        except (ValueError, KeyError) as error:
            raise BadRequestError(f"input '{name}' ({tensor.datatype}): {error}") from None

    def scalar(self, name: str, default: Any) -> Any:
        """Return the first value of an input, or `default` if it is absent or empty."""
        values = self.values(name)
        return values[0] if values else default

    def wants(self, output: str) -> bool:
        """True if this output is asked for; a caller who names none takes what comes."""
        return not self.outputs or any(each.name == output for each in self.outputs)

    def flag(self, name: str) -> bool:
        """True if this parameter is set, and true."""
        parameter = self.parameters.get(name)
        return parameter is not None and parameter.kind == "bool_param" and bool(parameter.value)

    def for_engine(self, model: str, request_id: str) -> Any:
        """Return the message as an engine gets it: for this model, under this id, without what is served here."""
        message = self.message
        message.model_name, message.id = model, request_id
        for name in OURS & self.parameters.keys():
            if name in message.parameters:  # Triton would not take them in every type
                del message.parameters[name]
        return message


def parse(message: Any, size: int | None = None) -> CallerRequest:
    """Read a ModelInferRequest. Values of tensors stay where they are until somebody asks for them.

    `size` is its length in bytes where that is known: to count them costs as much as to write the message.
    """
    tensors, raw_at = [], 0
    for each in message.inputs:
        parameters = each.parameters
        shared = _SHARED_MEMORY in parameters
        tensors.append(
            InputTensor(
                name=each.name,
                datatype=each.datatype,
                shape=tuple(each.shape),
                shared_bytes=_shared_bytes(parameters) if shared else None,
                contents=each.contents if each.HasField("contents") else None,
                raw_at=raw_at,
            )
        )
        raw_at += not shared
    return CallerRequest(
        id=message.id,
        model=message.model_name,
        version=message.model_version,
        tensors=tuple(tensors),
        inputs={each.name: each for each in reversed(tensors)},
        outputs=tuple(
            Output(
                name=each.name,
                plain=not each.parameters,
                shared=_SHARED_MEMORY in each.parameters,
                classified=CLASSES in each.parameters,
            )
            for each in message.outputs
        ),
        parameters={name: _parameter(each) for name, each in message.parameters.items()},
        size=message.ByteSize() if size is None else size,
        message=message,
    )


def _parameter(parameter: Any) -> Parameter:
    kind = parameter.WhichOneof("parameter_choice")
    return Parameter(kind=kind, value=None if kind is None else getattr(parameter, kind))


def _shared_bytes(parameters: Any) -> int:
    return max(parameters[_SHARED_SIZE].int64_param, 0) if _SHARED_SIZE in parameters else 0


def refusal(asked: CallerRequest, text: str) -> BadRequestError:
    """Return an error that begins as Triton's own do."""
    return BadRequestError(asked_by(asked.id) + text)


def model_refusal(asked: CallerRequest, text: str) -> ModelRefusesError:
    """Return the same for what the model would refuse, were it asked."""
    return ModelRefusesError(asked_by(asked.id) + text)


def asked_by(request_id: str) -> str:
    """Return how Triton begins the text of an error: with the caller's own id, or with words for none."""
    shown = request_id if len(request_id) <= _ID_CHARACTERS_MAX else request_id[:_ID_CHARACTERS_MAX] + "…"
    return f"[request id: {shown or '<id_unknown>'}] "


def check_well_formed(asked: CallerRequest) -> None:
    """Raise BadRequestError, naming the tensor or parameter, unless Triton takes this request from anybody.

    The parameters that are served here are not for Triton, and are not looked at.
    """
    _check_parameters(asked)
    by, model = asked_by(asked.id), asked.model
    raw, raw_at, names = asked.message.raw_input_contents, 0, set()
    for tensor in asked.tensors:
        name, shape = tensor.name, tensor.shape
        if name in names:
            raise BadRequestError(f"{by}input '{name}' already exists in request")
        names.add(name)
        if min(shape, default=0) < 0:
            unstated = f"All input dimensions should be specified for input '{name}' for model '{model}'"
            raise BadRequestError(f"{by}{unstated}, got {dims(shape)}")
        if tensor.shared_bytes is not None:
            if tensor.contents is not None:
                raise BadRequestError(
                    f"unexpected 'content' provided when using shared memory for input tensor '{name}' "
                    f"for model '{model}'"
                )
        elif not raw and tensor.contents is not None:
            _check_typed(by, model, tensor)
        elif tensor.contents is not None:
            raise BadRequestError(
                f"contents field must not be specified when using raw_input_contents for '{name}' for model '{model}'"
            )
        elif raw_at >= len(raw):
            raise BadRequestError(f"unable to find data for input tensor '{name}' for model '{model}' in request.")
        else:
            _check_raw(by, model, tensor, raw[raw_at])
            raw_at += 1
    if raw_at < len(raw):  # Triton drops the rest; but whose bytes then stand at which input?
        raise BadRequestError(f"{by}{len(raw)} raw_input_contents for {raw_at} inputs that take some")


def check_datatype(asked: CallerRequest, tensor: InputTensor, datatypes: Sequence[str]) -> None:
    """Raise BadRequestError for another datatype. Where nobody tells the ModelConfig, nobody has looked at it yet."""
    if tensor.datatype not in datatypes:
        expected = f"model '{asked.model}' expects '{datatypes[0]}'"
        raise refusal(asked, f"inference input '{tensor.name}' data-type is '{tensor.datatype}', but {expected}")


def dims(shape: tuple[int, ...]) -> str:
    """A shape as Triton prints it."""
    return f"[{','.join(map(str, shape))}]"


def _check_parameters(asked: CallerRequest) -> None:
    for name, parameter in asked.parameters.items():
        allowed = _PARAMETERS.get(name)
        if allowed is None and name.startswith("triton_"):
            raise BadRequestError(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys "
                f"starting with 'triton_' are allowed: {wire.EMPTY_FINAL}"
            )
        if name in OURS or parameter.kind in (allowed or _FREE):
            continue
        expected = " or ".join(allowed) if allowed else "int64_param, bool_param, or string_param"
        raise BadRequestError(f"invalid value type for '{name}' parameter, expected {expected}.")


def _check_typed(by: str, model: str, tensor: InputTensor) -> None:
    fields = [(field.name, values) for field, values in tensor.contents.ListFields()]
    wrong = f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{model}'"
    if len(fields) > 1:
        raise BadRequestError(f"{wrong}, binary data was already supplied.")
    count = 0
    for name, values in fields:
        if tensor.datatype not in _TYPED[name]:
            raise BadRequestError(f"{wrong} of type '{_TYPED[name][0]}', expected datatype '{tensor.datatype}'")
        count = len(values)
    if tensor.datatype == "BYTES":
        _check_strings(by, model, tensor, count)
    else:
        size = _element_bytes(by, tensor)
        _check_bytes(by, model, tensor.name, size * prod(tensor.shape), size * count)


def _check_raw(by: str, model: str, tensor: InputTensor, raw: bytes) -> None:
    if tensor.datatype == "BYTES":
        _check_strings(by, model, tensor, _strings(by, model, tensor.name, raw, prod(tensor.shape)))
    else:
        _check_bytes(by, model, tensor.name, _element_bytes(by, tensor) * prod(tensor.shape), len(raw))


def _element_bytes(by: str, tensor: InputTensor) -> int:
    size = _ELEMENT_BYTES.get(tensor.datatype)
    if size is None:
        raise BadRequestError(f"{by}inference input '{tensor.name}' data-type is '<invalid>': '{tensor.datatype}'")
    return size


def _check_bytes(by: str, model: str, name: str, expected: int, got: int) -> None:
    if expected != got:
        raise BadRequestError(
            f"{by}input byte size mismatch for input '{name}' for model '{model}'. Expected {expected}, got {got}"
        )


def _check_strings(by: str, model: str, tensor: InputTensor, count: int) -> None:
    name, expected = tensor.name, prod(tensor.shape)
    if count > expected:
        raise BadRequestError(
            f"{by}unexpected number of string elements {count} for inference input '{name}' for model '{model}', "
            f"expecting {expected}"
        )
    if count < expected:
        raise BadRequestError(
            f"{by}expected {expected} string elements for inference input '{name}' for model '{model}', got {count}"
        )


def _strings(by: str, model: str, name: str, raw: bytes, count_max: int) -> int:
    """Return how many strings stand in `raw`; counted no further than one beyond `count_max`."""
    at, count = 0, 0
    while at < len(raw) and count <= count_max:
        left = len(raw) - at
        if left < 4:
            raise BadRequestError(
                f"{by}incomplete string length indicator for inference input '{name}' for model '{model}', expecting "
                f"4 bytes but only {left} bytes available. Please make sure the string length indicator is in one "
                "buffer."
            )
        (length,) = struct.unpack_from("<I", raw, at)
        if length > left - 4:
            raise BadRequestError(
                f"{by}incomplete string data for inference input '{name}' for model '{model}', expecting string of "
                f"length {length} but only {left - 4} bytes available"
            )
        at += 4 + length
        count += 1
    return count
