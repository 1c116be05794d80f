"""What Triton takes as a request: each input once, with exactly the elements that its shape states.

Lane, length and slots of a request are read from shapes and values, so a request whose shape states five ids must not
carry two hundred thousand. These checks need no ModelConfig; what does stands in `schema.py`. Texts and their order are
those of Triton 2.51 (server: src/grpc/infer_handler.cc, core: src/infer_request.cc), so that a caller who changed only
the address reads what it read before.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from math import prod
from typing import Any

from sidecar.errors import BadRequestError

SHARED_MEMORY = "shared_memory_region"
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
_EMPTY_FINAL = "triton_enable_empty_final_response"
_PARAMETERS = {  # reserved by Triton: the fields of InferParameter that may carry each
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    _EMPTY_FINAL: ("bool_param",),
}
_FREE = ("int64_param", "bool_param", "string_param", "double_param")  # for all others
_ID_CHARACTERS_MAX = 256  # of the caller's id in a text: a status has to fit into gRPC's trailers


def asked_by(request_id: str) -> str:
    """How Triton begins the text of an error: with the caller's own id, or with words for none."""
    shown = request_id if len(request_id) <= _ID_CHARACTERS_MAX else request_id[:_ID_CHARACTERS_MAX] + "…"
    return f"[request id: {shown or '<id_unknown>'}] "


def check_well_formed(request: Any, ours: Collection[str] = ()) -> None:
    """Raise BadRequestError, naming the tensor or parameter, unless `request` is what Triton takes from anybody.

    The parameters named in `ours` are not for Triton, and are not looked at.
    """
    _check_parameters(request, ours)
    by, model = asked_by(request.id), request.model_name
    raw, raw_at, names = request.raw_input_contents, 0, set()
    for tensor in request.inputs:
        name = tensor.name
        if name in names:
            raise BadRequestError(f"{by}input '{name}' already exists in request")
        names.add(name)
        shape = tuple(tensor.shape)
        if min(shape, default=0) < 0:
            unstated = f"All input dimensions should be specified for input '{name}' for model '{model}'"
            raise BadRequestError(f"{by}{unstated}, got {dims(shape)}")
        if SHARED_MEMORY in tensor.parameters:
            if tensor.HasField("contents"):
                raise BadRequestError(
                    f"unexpected 'content' provided when using shared memory for input tensor '{name}' "
                    f"for model '{model}'"
                )
        elif not raw and tensor.HasField("contents"):
            _check_typed(by, model, tensor, shape)
        elif tensor.HasField("contents"):
            raise BadRequestError(
                f"contents field must not be specified when using raw_input_contents for '{name}' for model '{model}'"
            )
        elif raw_at >= len(raw):
            raise BadRequestError(f"unable to find data for input tensor '{name}' for model '{model}' in request.")
        else:
            _check_raw(by, model, tensor, shape, raw[raw_at])
            raw_at += 1
    if raw_at < len(raw):  # Triton drops the rest; but whose bytes then stand at which input?
        raise BadRequestError(f"{by}{len(raw)} raw_input_contents for {raw_at} inputs that take some")


def dims(shape: tuple[int, ...]) -> str:
    """A shape as Triton prints it."""
    return f"[{','.join(map(str, shape))}]"


def _check_parameters(request: Any, ours: Collection[str]) -> None:
    for name, parameter in request.parameters.items():
        allowed = _PARAMETERS.get(name)
        if allowed is None and name.startswith("triton_"):
            raise BadRequestError(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys "
                f"starting with 'triton_' are allowed: {_EMPTY_FINAL}"
            )
        if name in ours or parameter.WhichOneof("parameter_choice") in (allowed or _FREE):
            continue
        expected = " or ".join(allowed) if allowed else "int64_param, bool_param, or string_param"
        raise BadRequestError(f"invalid value type for '{name}' parameter, expected {expected}.")


def _check_typed(by: str, model: str, tensor: Any, shape: tuple[int, ...]) -> None:
    fields = [(field.name, values) for field, values in tensor.contents.ListFields()]
    wrong = f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{model}'"
    if len(fields) > 1:
        raise BadRequestError(f"{wrong}, binary data was already supplied.")
    count = 0
    for field, values in fields:
        if tensor.datatype not in _TYPED[field]:
            raise BadRequestError(f"{wrong} of type '{_TYPED[field][0]}', expected datatype '{tensor.datatype}'")
        count = len(values)
    if tensor.datatype == "BYTES":
        _check_strings(by, model, tensor.name, shape, count)
    else:
        size = _element_bytes(by, tensor)
        _check_bytes(by, model, tensor.name, size * prod(shape), size * count)


def _check_raw(by: str, model: str, tensor: Any, shape: tuple[int, ...], raw: bytes) -> None:
    if tensor.datatype == "BYTES":
        _check_strings(by, model, tensor.name, shape, _strings(by, model, tensor.name, raw, prod(shape)))
    else:
        _check_bytes(by, model, tensor.name, _element_bytes(by, tensor) * prod(shape), len(raw))


def _element_bytes(by: str, tensor: Any) -> int:
    size = _ELEMENT_BYTES.get(tensor.datatype)
    if size is None:
        raise BadRequestError(f"{by}inference input '{tensor.name}' data-type is '<invalid>': '{tensor.datatype}'")
    return size


def _check_bytes(by: str, model: str, name: str, expected: int, got: int) -> None:
    if expected != got:
        raise BadRequestError(
            f"{by}input byte size mismatch for input '{name}' for model '{model}'. Expected {expected}, got {got}"
        )


def _check_strings(by: str, model: str, name: str, shape: tuple[int, ...], count: int) -> None:
    expected = prod(shape)
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
    """How many strings stand in `raw`; counted no further than one beyond `count_max`."""
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
