"""The body of a completion or chat request, read by the reader of items: one field means one thing in both doors.

What the API has beside an item (`stream`, `stream_options`, `service_tier`) is read here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sidecar.core.request import Lane
from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item import Item, ItemRules, Record, read_item
from sidecar.offline.item_reader import read_object
from sidecar.triton.tokenizer import Tokens

FLEX = "flex"
_TIERS = {None: None, "auto": None, "default": Lane.ONLINE, FLEX: Lane.OFFLINE}  # None = the usual lane


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """One request of a program."""

    id: str
    item: Item
    lane: Lane
    stream: bool
    usage: bool  # a stream ends with a chunk that counts tokens


def read_asked(
    body: bytes, url: str, headers: Mapping[str, str], id: str, rules: ItemRules, tokens: Tokens, usual: Lane
) -> ApiRequest:
    """The request in `body`, in its `usual` lane unless it names one. Raises DeadItemError, naming the field.

    CPU-bound (the tokenizer): call it in a thread.
    """
    asked = read_object(body, rules.item_bytes_max)
    stream = _flag(asked, "stream")
    options = asked.pop("stream_options", None)
    usage = _usage(options, stream)
    tier = asked.pop("service_tier", None)
    if not isinstance(tier, str | None) or tier not in _TIERS:
        raise _invalid("service_tier", f"service_tier must be auto, default or {FLEX} (the offline lane)")
    line = {"custom_id": id, "method": "POST", "url": url, "body": asked}
    record = Record(
        topic=id,  # an answer without a seed draws by this
        partition=0,
        offset=0,
        timestamp_ms=int(time.time() * 1000),
        key=None,
        value=json.dumps(line, ensure_ascii=False).encode(),
        headers=tuple((name.lower(), value.encode()) for name, value in headers.items() if name.lower() != "x-job"),
    )
    bytes_max = len(record.value or b"")  # it is within the bound already, and a line is longer than its body
    item = read_item(record, replace(rules, item_bytes_max=bytes_max), tokens)
    return ApiRequest(id=id, item=item, lane=_TIERS[tier] or usual, stream=stream, usage=usage)


def _flag(asked: dict[str, Any], name: str) -> bool:
    value = asked.pop(name, None)
    if not isinstance(value, bool | None):
        raise _invalid(name, f"{name} must be true or false")
    return bool(value)


def _usage(options: Any, stream: bool) -> bool:
    """True if the stream is to end with the usage."""
    if options is None:
        return False
    if not isinstance(options, dict) or not stream:
        raise _invalid("stream_options", "stream_options must be an object, and goes with stream: true alone")
    options = dict(options)
    usage = _flag(options, "include_usage")
    _flag(options, "include_obfuscation")  # padding against eavesdroppers of packet sizes; TLS is not ended here
    if options:
        raise _invalid("stream_options", "stream_options serves include_usage alone")
    return usage


def _invalid(param: str, message: str) -> DeadItemError:
    return DeadItemError(DeadReason.INVALID, message, param=param)
