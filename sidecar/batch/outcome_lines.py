"""What became of an item, as a line of an OpenAI Batch output file, or of its error file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sidecar.offline.dead_letters import DeadReason
from sidecar.offline.item import Record

# The refusals that the OpenAI API does not answer with 400.
_STATUS = {
    DeadReason.UNKNOWN_MODEL: 404,
    DeadReason.UNSUPPORTED_URL: 404,
    DeadReason.TOO_LARGE: 413,
    DeadReason.FAILED: 500,
    DeadReason.EMPTY_OUTPUT: 500,
    DeadReason.POISON: 500,
    DeadReason.RESULT_TOO_LARGE: 500,
    DeadReason.RESULT_REFUSED: 500,
}
_NEVER_RAN = (DeadReason.EXPIRED, DeadReason.CANCELLED)


@dataclass(frozen=True, slots=True, order=True)
class LinePlace:
    """Where an outcome stands among those of its job: by the line it was submitted as, else by its item's offset."""

    submitted: bool
    number: int  # of the line, or of the partition
    offset: int = 0  # of the item, where no line is known


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeLine:
    """Holds one outcome of a job. Of several for one place that of the last retry counts, and of that the first one."""

    place: LinePlace
    partition: int  # of the item
    offset: int
    retry: int  # 0 for what was submitted, n for the nth retry of a dead letter
    ok: bool
    value: bytes  # the line, without its newline


def outcome_line(record: Record, *, dead: bool, lined: bool = True) -> OutcomeLine | None:
    """The outcome in a record of the results or the dead-letter topic; None for what says not whose it is.

    `lined`: the item's line places it. Only `sidecar submit` numbers items so that no two of a job have one line.
    """
    headers = {name: value for name, value in record.headers if value is not None}  # the last of a name counts
    prefix = "dlq.original." if dead else "x-source-"
    source = [_number(headers.get(f"{prefix}{name}")) for name in ("partition", "offset")]
    partition, offset = source
    if partition is None or offset is None:
        return None
    line = _number(headers.get("x-line")) if lined else None
    place = LinePlace(False, partition, offset) if line is None else LinePlace(True, line)
    return OutcomeLine(
        place=place,
        partition=partition,
        offset=offset,
        retry=_number(headers.get("x-retry")) or 0,
        ok=not dead,
        value=error_line(record, headers) if dead else record.value or b"",
    )


def error_line(record: Record, headers: dict[str, bytes]) -> bytes:
    """The dead letter as a line of an error file: an answer that refuses, or none where the item never ran."""
    source = "/".join(_text(headers.get(f"dlq.original.{name}")) for name in ("topic", "partition", "offset"))
    reason = _text(headers.get("dlq.error.class"))
    error = _error(headers)
    line: dict[str, Any] = {"id": f"batch_req_{source}", "custom_id": custom_id(record.value), "response": None}
    if reason in _NEVER_RAN:
        line["error"] = {"code": error["code"], "message": error["message"]}
    else:
        known = DeadReason(reason) if reason in set(DeadReason) else DeadReason.FAILED
        body = {"error": error}
        line["response"] = {"status_code": _STATUS.get(known, 400), "request_id": source, "body": body}
        line["error"] = None
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")


def custom_id(value: bytes | None) -> str:
    """The id in an item's value; "" where nobody can read it."""
    try:
        told = json.loads(value or b"null")
        found = told.get("custom_id", told.get("id"))
    except (ValueError, RecursionError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""


def _error(headers: dict[str, bytes]) -> dict[str, Any]:
    """The error object that the lane wrote, or what is left of one."""
    blank = {"code": None, "message": _text(headers.get("dlq.error.message")), "param": None, "type": "server_error"}
    try:
        told = json.loads(headers.get("dlq.error.openai", b""))
    except ValueError:
        return blank
    return {**blank, **told} if isinstance(told, dict) else blank


def _number(text: bytes | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
