"""The responses of one decoupled request as the single response that a unary caller gets."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from sidecar.errors import MalformedAnswerError
from sidecar.triton import wire


def joined(responses: Sequence[Any]) -> Any:
    """One ModelInferResponse: `output_ids` and `text_output` joined, `sequence_length` summed, of others the last.

    A request that did not ask to be streamed has one response, which is returned as it is. Raises MalformedAnswerError
    if the parts of an output do not fit each other.
    """
    parts = [each for each in responses if each.outputs]
    if len(parts) <= 1:
        return parts[0] if parts else responses[-1] if responses else wire.InferResponse()
    answer = wire.InferResponse()
    answer.CopyFrom(parts[-1])
    del answer.outputs[:], answer.raw_output_contents[:]
    for name in dict.fromkeys(tensor.name for part in parts for tensor in part.outputs):
        found = [part for each in parts if (part := _part(each, name)) is not None]
        tensor = answer.outputs.add()
        tensor.CopyFrom(found[-1].tensor)
        joiner = _JOINERS.get(name)
        if joiner is None or len(found) == 1:
            answer.raw_output_contents.append(found[-1].raw)
        else:
            shape, raw = joiner(found)
            del tensor.shape[:]
            tensor.shape.extend(shape)
            answer.raw_output_contents.append(raw)
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What one response says of an output."""

    tensor: Any
    raw: bytes

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def values(self, *datatypes: str) -> tuple[Any, ...]:
        """Raises MalformedAnswerError if they are of none of these datatypes, or do not fit the shape."""
        name, datatype = self.tensor.name, self.tensor.datatype
        try:
            values = wire.unpack(datatype, self.raw) if datatype in datatypes else ()
        except ValueError as error:
            raise MalformedAnswerError(f"output '{name}' ({datatype}): {error}") from None
        if datatype not in datatypes or min(self.shape, default=0) < 0 or prod(self.shape) != len(values):
            raise MalformedAnswerError(f"output '{name}' ({datatype}) of shape {list(self.shape)} cannot be joined")
        return values


def _part(response: Any, name: str) -> _Part | None:
    """None if this response does not bring the output."""
    found = [at for at, tensor in enumerate(response.outputs) if tensor.name == name]
    if not found:
        return None
    if len(found) > 1:
        raise MalformedAnswerError(f"output '{name}' comes twice")
    if found[0] >= len(response.raw_output_contents):
        raise MalformedAnswerError(f"output '{name}' has no raw contents")
    return _Part(tensor=response.outputs[found[0]], raw=response.raw_output_contents[found[0]])


def _pack(parts: Sequence[_Part], values: Sequence[Any]) -> bytes:
    """In the datatype that all parts have."""
    datatypes = sorted({part.tensor.datatype for part in parts})
    name = parts[-1].tensor.name
    if len(datatypes) > 1:
        raise MalformedAnswerError(f"output '{name}' comes as {' and as '.join(datatypes)}")
    try:
        return wire.pack(datatypes[0], values)
    except (struct.error, OverflowError) as error:
        raise MalformedAnswerError(f"output '{name}' ({datatypes[0]}): {error}") from None


Joined = tuple[Sequence[int], bytes]  # shape and raw contents


def _join_ids(parts: Sequence[_Part]) -> Joined:
    """[…, n] of each part, row by row along the last axis."""
    leading = {part.shape[:-1] for part in parts}
    if len(leading) > 1 or not all(part.shape for part in parts):
        shapes = sorted({part.shape for part in parts})
        raise MalformedAnswerError(f"output '{parts[-1].tensor.name}' comes in the shapes {list(map(list, shapes))}")
    (rows,) = leading
    values = [(part.values(*wire.INTEGERS), part.shape[-1]) for part in parts]
    width = sum(each for _, each in values)
    out: list[int] = []
    for row in range(prod(rows) if width else 0):  # where there are no values, a shape can state any number of rows
        for ids, each in values:
            out += ids[row * each : (row + 1) * each]
    return (*rows, width), _pack(parts, out)


def _join_texts(parts: Sequence[_Part]) -> Joined:
    """[…] of each part, element by element."""
    values = [part.values("BYTES") for part in parts]
    width = max(map(len, values))
    texts = [b"".join(each[at] for each in values if at < len(each)) for at in range(width)]
    return _widest(parts, values, width), _pack(parts, texts)


def _sum(parts: Sequence[_Part]) -> Joined:
    values = [part.values(*wire.INTEGERS) for part in parts]
    width = max(map(len, values))
    sums = [sum(each[at] for each in values if at < len(each)) for at in range(width)]
    return _widest(parts, values, width), _pack(parts, sums)


def _widest(parts: Sequence[_Part], values: Sequence[Sequence[Any]], width: int) -> Sequence[int]:
    return next(part.shape for part, each in zip(parts, values, strict=True) if len(each) == width)


_JOINERS: dict[str, Callable[[Sequence[_Part]], Joined]] = {
    "output_ids": _join_ids,
    "text_output": _join_texts,
    "sequence_length": _sum,
}
