"""The responses of one decoupled request as the single response that a unary caller gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from sidecar.frontend.statuses import CallerError
from sidecar.frontend.tensor_rules import asked_by
from sidecar.triton import wire


def joined(responses: Sequence[Any]) -> Any:
    """One ModelInferResponse: `output_ids` and `text_output` joined, `sequence_length` summed, of others the last.

    A request that did not ask to be streamed has one response, which is returned as it is.
    """
    parts = [each for each in responses if each.outputs]
    if len(parts) <= 1:
        return parts[0] if parts else responses[-1] if responses else wire.InferResponse()
    answer = wire.InferResponse()
    answer.CopyFrom(parts[-1])
    for index, tensor in enumerate(answer.outputs):
        if (joiner := _JOINERS.get(tensor.name)) is not None:
            shape, raw = joiner([_part(each, tensor.name) for each in parts])
            del tensor.shape[:]
            tensor.shape.extend(shape)
            answer.raw_output_contents[index] = raw
    return answer


def check_joinable(request: Any) -> None:
    """Raise CallerError for a request whose responses are not parts of one: each sequence gets its own."""
    for name, count in (
        ("num_return_sequences", wire.scalar(request, "num_return_sequences", 1)),
        ("the batch size", max((each.shape[0] for each in request.inputs if each.shape), default=1)),
    ):
        if count > 1:
            text = f"ModelInfer gives one response, but {name} is {count}: ask by ModelStreamInfer"
            raise CallerError(grpc.StatusCode.UNIMPLEMENTED, asked_by(request.id) + text)


Part = tuple[tuple[int, ...], tuple[Any, ...]]  # shape and values


def _part(response: Any, name: str) -> Part:
    for tensor in response.outputs:
        if tensor.name == name:
            return tuple(tensor.shape), wire.output_values(response, name) or ()
    return (), ()


def _join_ids(parts: Sequence[Part]) -> tuple[Sequence[int], bytes]:
    """[…, n] of each part, row by row along the last axis."""
    rows = max(_rows(shape) for shape, _ in parts)
    out: list[list[int]] = [[] for _ in range(rows)]
    for shape, values in parts:
        width = shape[-1] if shape else 0
        for row in range(rows if width else 0):
            out[row].extend(values[row * width : (row + 1) * width])
    leading = next(shape[:-1] for shape, _ in parts if shape)
    return (*leading, len(out[0])), wire.pack("INT32", [value for row in out for value in row])


def _rows(shape: Sequence[int]) -> int:
    rows = 1
    for dim in shape[:-1]:
        rows *= dim
    return rows


def _join_texts(parts: Sequence[Part]) -> tuple[Sequence[int], bytes]:
    """[…] of each part, element by element."""
    width = max(len(values) for _, values in parts)
    texts = [b"".join(values[at] for _, values in parts if at < len(values)) for at in range(width)]
    shape = next(shape for shape, values in parts if len(values) == width)
    return shape, wire.pack("BYTES", texts)


def _sum(parts: Sequence[Part]) -> tuple[Sequence[int], bytes]:
    width = max(len(values) for _, values in parts)
    shape = next(shape for shape, values in parts if len(values) == width)
    return shape, wire.pack(
        "INT32", [sum(values[at] for _, values in parts if at < len(values)) for at in range(width)]
    )


_JOINERS = {"output_ids": _join_ids, "text_output": _join_texts, "sequence_length": _sum}
