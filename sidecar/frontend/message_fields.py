"""How many parts a request has, seen before it is parsed: a message of 8 MiB with 600,000 parameters takes the parser
40 s (measured, protobuf 6.33), in which nobody is served.

Layout: https://protobuf.dev/programming-guides/encoding/ - a tag, then a number, or a length and as many bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

FIELDS_MAX = 4096  # inputs, outputs, parameters and raw contents together; a large model has some dozens
_ID = 3  # of a ModelInferRequest: the caller's id
_TENSORS = (5, 6)  # its inputs and outputs, which have parameters of their own
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}


def too_many(raw: bytes) -> str | None:
    """The id of the request, if it has more than FIELDS_MAX parts; None if not. What is no message is not judged."""
    count, request_id = 0, b""
    try:
        for number, begin, end in _fields(raw, 0, len(raw)):
            count += 1
            if number == _ID:
                request_id = raw[begin:end]
            elif number in _TENSORS:
                for _ in _fields(raw, begin, end):
                    count += 1
                    if count > FIELDS_MAX:
                        break
            if count > FIELDS_MAX:
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
        else:
            begin, at = at, at + (_SIZES.get(kind) or _unknown(kind))
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


def _unknown(kind: int) -> int:
    raise ValueError(f"no wire type {kind}")
