"""The KServe v2 messages as this sidecar reads and builds them: plain functions over the protobuf types.

Tensors are little-endian and stand either in `raw_input_contents`, in the order of `inputs`, or in typed `contents`.
Parsing a streamed response, setting its id and serialising it again costs 1.4 µs (measured, upb), less than two per
cent of relaying it through grpc.aio: a hand-written scan of the bytes would save nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from tritonclient.grpc import service_pb2

from sidecar.errors import BadRequestError, MalformedAnswerError

InferRequest = service_pb2.ModelInferRequest
InferResponse = service_pb2.ModelInferResponse
StreamResponse = service_pb2.ModelStreamInferResponse

EMPTY_FINAL = "triton_enable_empty_final_response"
FINAL = "triton_final_response"
_FORMATS = {"INT32": "i", "INT64": "q", "UINT64": "Q", "FP32": "f", "BOOL": "?"}
_TYPED = {
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
}
_SHARED_MEMORY = "shared_memory_region"
# The layout of https://protobuf.dev/programming-guides/encoding/: a tag, then a number, or a length and as many bytes.
_ID = 3  # of a ModelInferRequest: the caller's id
_WITH_PARAMETERS = (5, 6)  # its inputs and outputs
_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)
_SIZES = {_FIXED64: 8, _FIXED32: 4, _GROUP: 0, _END_GROUP: 0}  # parsers pass over an unknown group: its fields count
INTEGERS = ("INT32", "INT64", "UINT64")


def id_if_beyond(parts_max: int, raw: bytes) -> str | None:
    """The id of a request that has more than so many inputs, outputs, parameters and raw contents; None if not.

    It is seen before the request is parsed: one of 8 MiB with 600,000 parameters takes the parser 40 s (measured,
    protobuf 6.33), in which nobody is served. What is no message is not judged.
    """
    count, request_id = 0, b""
    try:
        for number, begin, end in _fields(raw, 0, len(raw)):
            count += 1
            if number == _ID:
                request_id = raw[begin:end]
            elif number in _WITH_PARAMETERS:
                for _ in _fields(raw, begin, end):
                    count += 1
                    if count > parts_max:
                        break
            if count > parts_max:
                return request_id.decode(errors="replace")
    except (IndexError, ValueError):
        pass  # for the parser to refuse
    return None


def _fields(raw: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field. Raises IndexError or ValueError for what is none."""
    while at < end:
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == _VARINT:
            begin, (_, at) = at, _varint(raw, at)
        elif kind == _BYTES:
            size, begin = _varint(raw, at)
            at = begin + size
        elif kind in _SIZES:
            begin, at = at, at + _SIZES[kind]
        else:
            raise ValueError(f"no wire type {kind}")
        yield tag >> 3, begin, at


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number, and where the next one begins."""
    value = shift = 0
    while (byte := raw[at]) > 0x7F:
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if shift > 63:
            raise ValueError("too long a number")
    return value | byte << shift, at + 1


def add_tensor(request: Any, name: str, datatype: str, values: Sequence[Any], shape: Sequence[int]) -> None:
    """`request` carries one more input, as raw bytes. All inputs of one request must be raw, or none.

    Raises BadRequestError, naming the tensor, if a value is none of its datatype.
    """
    try:
        raw = pack(datatype, values)
    except (struct.error, OverflowError, TypeError) as error:
        raise BadRequestError(f"input '{name}' ({datatype}): {error}") from None
    tensor = request.inputs.add(name=name, datatype=datatype)
    tensor.shape.extend(shape)
    request.raw_input_contents.append(raw)


def pack(datatype: str, values: Sequence[Any]) -> bytes:
    """The raw contents of a tensor: little-endian numbers, or length-prefixed strings for BYTES."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return struct.pack(f"<{len(values)}{_FORMATS[datatype]}", *values)


def unpack(datatype: str, raw: bytes) -> tuple[Any, ...]:
    """The values of raw contents. Raises ValueError if the bytes do not fit the datatype."""
    if datatype == "BYTES":
        return tuple(_strings(raw))
    form = _FORMATS.get(datatype)
    if form is None or len(raw) % struct.calcsize(f"<{form}"):
        raise ValueError(f"{len(raw)} bytes are no {datatype} tensor")
    return struct.unpack(f"<{len(raw) // struct.calcsize(f'<{form}')}{form}", raw)


def _strings(raw: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise ValueError("a BYTES tensor ends inside a length")
        (length,) = struct.unpack_from("<I", raw, at)
        if at + 4 + length > len(raw):
            raise ValueError("a BYTES tensor ends inside a string")
        found.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def input_values(request: Any, name: str) -> tuple[Any, ...] | None:
    """The values of input `name`; None if it is absent or lies in shared memory.

    Raises BadRequestError, naming the tensor, if its bytes do not fit its datatype.
    """
    raw_at = -1
    for tensor in request.inputs:
        in_shared_memory = _SHARED_MEMORY in tensor.parameters
        raw_at += not in_shared_memory
        if tensor.name != name:
            continue
        if in_shared_memory:
            return None
        try:
            if raw_at < len(request.raw_input_contents):
                return unpack(tensor.datatype, request.raw_input_contents[raw_at])
            return typed_values(tensor.datatype, tensor.contents)
        except (ValueError, KeyError) as error:
            raise BadRequestError(f"input '{name}' ({tensor.datatype}): {error}") from None
    return None


def scalar(request: Any, name: str, default: Any) -> Any:
    """The first value of input `name`, or `default` if it is absent or empty."""
    values = input_values(request, name)
    return values[0] if values else default


def output_values(response: Any, name: str) -> tuple[Any, ...] | None:
    """The values of output `name` of a ModelInferResponse; None if it is absent or lies in shared memory.

    Raises MalformedAnswerError if it comes twice, or if its bytes, its datatype and its shape do not fit each other.
    """
    found: tuple[Any, ...] | None = None
    for index, tensor in enumerate(response.outputs):
        if tensor.name != name or _SHARED_MEMORY in tensor.parameters:
            continue
        if found is not None:
            raise MalformedAnswerError(f"output '{name}' comes twice")
        raw = response.raw_output_contents[index] if index < len(response.raw_output_contents) else None
        try:
            found = unpack(tensor.datatype, raw) if raw is not None else typed_values(tensor.datatype, tensor.contents)
        except (ValueError, KeyError) as error:
            raise MalformedAnswerError(f"output '{name}' ({tensor.datatype}): {error}") from None
        if any(each < 0 for each in tensor.shape) or prod(tensor.shape) != len(found):
            raise MalformedAnswerError(f"output '{name}' of shape {list(tensor.shape)} holds {len(found)} values")
    return found


def typed_values(datatype: str, contents: Any) -> tuple[Any, ...]:
    """The values of typed contents, which may be missing. Raises KeyError for a datatype that we do not read."""
    return tuple(getattr(contents, _TYPED[datatype], ()))


def output_ids(response: Any) -> tuple[int, ...]:
    """The token ids of a response to a call for one sequence; () if it brings none.

    Raises MalformedAnswerError if they are those of several sequences, or no token ids.
    """
    ids = output_values(response, "output_ids")
    if not ids:
        return ()
    (tensor,) = (each for each in response.outputs if each.name == "output_ids")
    if tensor.datatype not in INTEGERS:
        raise MalformedAnswerError(f"output 'output_ids' is {tensor.datatype}, which is no token id")
    if list(tensor.shape[-1:]) != [len(ids)]:
        raise MalformedAnswerError(
            f"output 'output_ids' has the shape {list(tensor.shape)}; one sequence was asked for"
        )
    if min(ids) < 0 or max(ids) >= 1 << 31:
        raise MalformedAnswerError(
            f"output 'output_ids' holds {min(ids)} to {max(ids)}; a token id is in 0..2147483647"
        )
    return ids


def output_count(response: Any, name: str) -> int | None:
    """A figure that the engine tells beside its answer; None if it is absent, or no count: the answer stands."""
    try:
        values = output_values(response, name)
    except MalformedAnswerError:
        return None
    value = values[0] if values else None
    return value if type(value) is int and value >= 0 else None


def add_output(answer: Any, name: str, datatype: str, values: Sequence[Any], shape: Sequence[int]) -> None:
    """A ModelStreamInferResponse carries one more output, as raw bytes."""
    answer.infer_response.outputs.add(name=name, datatype=datatype, shape=shape)
    answer.infer_response.raw_output_contents.append(pack(datatype, values))


def empty_final(model_name: str, request_id: str) -> Any:
    """A ModelStreamInferResponse without data after which nothing follows for this request."""
    answer = StreamResponse()
    answer.infer_response.model_name = model_name
    answer.infer_response.id = request_id
    answer.infer_response.parameters[FINAL].bool_param = True
    return answer


def is_final(response: Any) -> bool:
    """True if no further response follows for this request."""
    parameters = response.parameters  # once: each look makes a wrapper anew
    return FINAL in parameters and parameters[FINAL].bool_param


def output_tokens(response: Any) -> int:
    """The output tokens that one response brings: the width of `output_ids`, else one per response with data.

    Raises MalformedAnswerError if that width is negative, or not that of the bytes.
    """
    for index, tensor in enumerate(response.outputs):
        if tensor.name == "output_ids" and tensor.datatype != "BYTES":  # which are classes of it, if it was so asked
            shape = tensor.shape
            raw = response.raw_output_contents[index] if index < len(response.raw_output_contents) else b""
            size = struct.calcsize(f"<{_FORMATS.get(tensor.datatype, 'i')}")
            # No bytes here: they are typed contents, or in shared memory.
            if any(each < 0 for each in shape) or (raw and len(raw) != size * prod(shape)):
                raise MalformedAnswerError(f"output 'output_ids' of shape {list(shape)} holds {len(raw)} bytes")
            return int(shape[-1]) if shape else 0
    return 1 if response.outputs else 0
