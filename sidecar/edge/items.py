"""Offline items: a Kafka record becomes a call of the engine, and what the engine gave becomes a result.

A value is one line of the OpenAI Batch format for /v1/completions or /v1/chat/completions, or the short form
`{"id", "prompt" | "input_ids", "max_tokens", …}` (kafka/item.schema.json); a result is a line of that format's output
(kafka/result.schema.json). Whatever cannot be read is a dead letter with a reason, never an exception in the lane.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sidecar.core.errors import SidecarError
from sidecar.core.work import EndReason
from sidecar.edge.calls import Generated, Sampling, TokenCall
from sidecar.edge.routing import Aliases, routed
from sidecar.edge.tokens import Tokens

Headers = tuple[tuple[str, bytes], ...]

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
PREFIX_IDS = 64  # prompts that share this many leading ids share at least one block of any engine's KV cache
INT32_MAX = (1 << 31) - 1  # the engine's tensors of token ids
INT64_MAX = (1 << 63) - 1
REGISTRY_MAGIC = 0  # a schema registry's framing: this byte, four bytes of schema id, then the payload


class DeadReason(StrEnum):
    """Why an item will not be tried (again). Finite: these are labels of a metric."""

    TOO_LARGE = "too_large"  # more than item_bytes_max; not parsed
    FRAMED = "schema_registry_framed"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    INVALID = "invalid"  # JSON, but a field is missing, has the wrong type or cannot be honoured
    MISSING_PROMPT = "missing_prompt"
    UNSUPPORTED_URL = "unsupported_url"
    UNKNOWN_MODEL = "unknown_model"
    TOO_LONG = "too_long"  # prompt + max_tokens do not fit the model
    EXPIRED = "expired"  # its deadline passed before it ran
    FAILED = "failed"  # the engine refused it for good, or each attempt failed
    POISON = "poison"  # it ran alone when the process was killed
    RESULT_TOO_LARGE = "result_too_large"


class DeadItemError(SidecarError):
    """This item belongs on the dead-letter topic."""

    def __init__(self, reason: DeadReason, message: str, attempts: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.attempts = attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of the requests topic, as it was read."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    def header(self, name: str) -> str | None:
        """The last header of this name as text, or None. Raises DeadItemError if it is not UTF-8."""
        for key, value in reversed(self.headers):
            if key == name:
                try:
                    return value.decode()
                except UnicodeDecodeError:
                    raise DeadItemError(DeadReason.INVALID, f"header {name} is not UTF-8") from None
        return None

    @property
    def source(self) -> str:
        """topic/partition/offset: unique within one cluster."""
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRules:
    """What an item is held against. `tokens_max` is, per known model, prompt + output of one sequence."""

    tokens_max: Mapping[str, int]
    aliases: Aliases = field(default_factory=dict)
    model_default: str
    item_bytes_max: int
    max_tokens_default: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One readable item: what to generate, and what its result has to repeat."""

    custom_id: str
    chat: bool
    model: str
    call: TokenCall
    tenant: str
    job: str | None
    deadline: datetime | None
    prefix_key: str


def read_item(record: Record, rules: ItemRules, tokens: Tokens) -> Item:
    """The item of this record, tokenised. Raises DeadItemError for whatever will never become a result.

    CPU-bound (JSON and the tokenizer): call it in a thread.
    """
    body, custom_id, chat = _body(_json(record, rules))
    model = record.header("x-model") or _typed(body, "model", str) or rules.model_default
    if model not in rules.tokens_max and model not in rules.aliases:
        known = sorted((*rules.tokens_max, *rules.aliases))
        raise DeadItemError(DeadReason.UNKNOWN_MODEL, f"no engine for model {model!r}; known: {known}")
    call = _call(body, chat, rules, tokens, record.header("traceparent"))
    tenant = record.header("x-tenant") or "default"
    if rule := rules.aliases.get(model):
        model = routed(rule, len(call.prompt_ids), call.output_tokens_max, tenant, record.header)
    total = len(call.prompt_ids) + call.output_tokens_max
    if total > rules.tokens_max[model]:
        raise DeadItemError(
            DeadReason.TOO_LONG,
            f"prompt of {len(call.prompt_ids)} tokens + max_tokens {call.output_tokens_max} "
            f"exceed the {rules.tokens_max[model]} tokens of {model}",
        )
    return Item(
        custom_id=custom_id,
        chat=chat,
        model=model,
        call=call,
        tenant=tenant,
        job=record.header("x-job"),
        deadline=_deadline(record.header("x-deadline")),
        prefix_key=_prefix_key(call.prompt_ids),
    )


def result_value(record: Record, item: Item, generated: Generated, tokens: Tokens) -> bytes:
    """The result as one line of the OpenAI Batch output format, a `sidecar` object beside it. UTF-8, no newline."""
    text = tokens.decode(_without_stop_word(generated, item.call.stop_words))
    finish = "length" if generated.reason is EndReason.LENGTH else "stop"
    content = {"message": {"role": "assistant", "content": text}} if item.chat else {"text": text}
    prompt, completion = len(item.call.prompt_ids), len(generated.output_ids)
    body = {
        "id": record.source,
        "object": "chat.completion" if item.chat else "text_completion",
        "model": item.model,
        "choices": [{"index": 0, **content, "finish_reason": finish, "logprobs": None}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }
    line = {
        "id": f"batch_req_{record.source}",
        "custom_id": item.custom_id,
        "response": {"status_code": 200, "request_id": record.source, "body": body},
        "error": None,
        "sidecar": _provenance(item, generated),
    }
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode()


def result_headers(record: Record) -> Headers:
    """The item's own headers, then where it came from: the exact provenance that lets a checker prove exactly-once."""
    own = tuple(header for header in record.headers if not header[0].startswith("x-source-"))
    return (
        *own,
        ("x-source-topic", record.topic.encode()),
        ("x-source-partition", str(record.partition).encode()),
        ("x-source-offset", str(record.offset).encode()),
    )


def dead_headers(record: Record, error: DeadItemError, stage: str, first_seen_ms: int) -> Headers:
    """The item's own headers untouched, then why and from where. Key and value stay byte for byte the item's."""
    texts = {
        "dlq.error.class": error.reason.value,
        "dlq.error.message": str(error)[:1000],
        "dlq.error.stage": stage,
        "dlq.original.topic": record.topic,
        "dlq.original.partition": str(record.partition),
        "dlq.original.offset": str(record.offset),
        "dlq.original.timestamp": str(record.timestamp_ms),
        "dlq.attempts": str(error.attempts),
        "dlq.first_seen": str(first_seen_ms),
    }
    return (*record.headers, *((name, text.encode(errors="backslashreplace")) for name, text in texts.items()))


def _json(record: Record, rules: ItemRules) -> dict[str, Any]:
    value = record.value
    if not value:
        raise DeadItemError(DeadReason.MISSING_PROMPT, "the value is empty")
    if len(value) > rules.item_bytes_max:
        raise DeadItemError(DeadReason.TOO_LARGE, f"{len(value)} bytes exceed item_bytes_max {rules.item_bytes_max}")
    if value[0] == REGISTRY_MAGIC and len(value) >= 5:
        schema = int.from_bytes(value[1:5], "big")
        raise DeadItemError(DeadReason.FRAMED, f"framed for a schema registry (schema id {schema}); send plain JSON")
    try:
        parsed = json.loads(value.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise DeadItemError(DeadReason.NOT_UTF8, f"byte {error.start} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DeadItemError(DeadReason.NOT_JSON, str(error) or "nested too deeply") from None
    if not isinstance(parsed, dict):
        raise _invalid(f"the value must be a JSON object, not {type(parsed).__name__}")
    return parsed


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # Python would take NaN and Infinity


def _body(line: dict[str, Any]) -> tuple[dict[str, Any], str, bool]:
    """(the parameters, the item's id, chat?) of a Batch line or of the short form."""
    if "body" not in line and "url" not in line:
        return line, _required(line, "id", str), False
    url = _required(line, "url", str)
    if url not in (COMPLETIONS, CHAT):
        raise DeadItemError(DeadReason.UNSUPPORTED_URL, f"{url} is not served; {COMPLETIONS} and {CHAT} are")
    if line.get("method", "POST") != "POST":
        raise _invalid(f"method must be POST, not {line['method']!r}")
    return _required(line, "body", dict), _required(line, "custom_id", str), url == CHAT


def _call(body: dict[str, Any], chat: bool, rules: ItemRules, tokens: Tokens, traceparent: str | None) -> TokenCall:
    if body.get("n", 1) != 1 or body.get("best_of", 1) != 1:
        raise _invalid("n and best_of must be 1: one item is one sequence")
    given = (_int(body, "max_completion_tokens"), _int(body, "max_tokens"), rules.max_tokens_default)
    output_tokens_max = next(each for each in given if each is not None)
    if output_tokens_max < 1:
        raise _invalid(f"max_tokens must be >= 1, not {output_tokens_max}")
    return TokenCall(
        prompt_ids=_prompt_ids(body, chat, tokens),
        output_tokens_max=output_tokens_max,
        sampling=_sampling(body),
        stop_words=tuple(tokens.encode_words(word) for word in _stop(body)),
        end_id=tokens.end_id,
        traceparent=traceparent,
    )


def _prompt_ids(body: dict[str, Any], chat: bool, tokens: Tokens) -> tuple[int, ...]:
    ids = body.get("input_ids")
    prompt = _chat_text(body) if chat else body.get("prompt")
    if ids is None and isinstance(prompt, list):
        ids = prompt
    if ids is not None:
        if not isinstance(ids, list) or not all(type(each) is int and 0 <= each <= INT32_MAX for each in ids):
            raise _invalid("input_ids (or a prompt that is a list) must be a list of token ids")
        found = tuple(ids)
    else:
        if prompt is None:
            raise DeadItemError(DeadReason.MISSING_PROMPT, "neither prompt nor input_ids nor messages")
        if not isinstance(prompt, str):
            raise _invalid(f"prompt must be text or token ids, not {type(prompt).__name__}")
        found = tokens.encode_prompt(prompt) if prompt else ()
    if not found:
        raise DeadItemError(DeadReason.MISSING_PROMPT, "the prompt is empty")
    return found


def _chat_text(body: dict[str, Any]) -> str | None:
    """The messages as `role: content` lines: plain, the same for each model; bring your own template as a prompt."""
    messages = body.get("messages")
    if not messages:
        return None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _invalid("messages must be a list of objects")
    lines = [f"{_required(message, 'role', str)}: {_content(message)}" for message in messages]
    return "\n".join([*lines, "assistant:"])


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(_required(part, "text", str) for part in content)
    raise _invalid("message content must be text or parts of type text")


def _sampling(body: dict[str, Any]) -> Sampling:
    return Sampling(
        temperature=_float(body, "temperature"),
        top_k=_int(body, "top_k"),
        top_p=_float(body, "top_p"),
        seed=_int(body, "seed"),
        repetition_penalty=_float(body, "repetition_penalty"),
        presence_penalty=_float(body, "presence_penalty"),
        frequency_penalty=_float(body, "frequency_penalty"),
        min_tokens=_int(body, "min_tokens"),
    )


def _stop(body: dict[str, Any]) -> Sequence[str]:
    stop = body.get("stop") or []
    words = [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise _invalid("stop must be a non-empty text or a list of them")
    return words


def _deadline(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        deadline = datetime.fromisoformat(text)
    except ValueError:
        raise _invalid(f"x-deadline is not RFC 3339: {text!r}") from None
    if deadline.tzinfo is None:
        raise _invalid(f"x-deadline has no offset from UTC: {text!r}")
    return deadline


def _provenance(item: Item, generated: Generated) -> dict[str, Any]:
    running_s = generated.finished_s - generated.first_token_s
    return {
        "tenant": item.tenant,
        "job": item.job,
        "engine": generated.engine,
        "ended_by": generated.reason.value,
        "attempts": generated.attempts,
        "resumed": generated.resumed,
        "grants": generated.grants,
        "timing": {"queue_wait_s": round(generated.queue_wait_s, 4), "first_token_to_end_s": round(running_s, 4)},
        "cost": {"tokens": len(item.call.prompt_ids) + len(generated.output_ids), "grants": generated.grants},
    }


def _without_stop_word(generated: Generated, stop_words: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    ids = generated.output_ids
    if generated.reason is EndReason.STOP_WORD:
        for word in stop_words:
            if word and ids[-len(word) :] == word:
                return ids[: -len(word)]
    return ids


def _prefix_key(ids: Sequence[int]) -> str:
    return hashlib.blake2b(repr(ids[:PREFIX_IDS]).encode(), digest_size=8).hexdigest()


def _required(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = _typed(fields, name, kind)
    if value is None:
        raise _invalid(f"{name} is missing")
    return value


def _typed(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if value is not None and not isinstance(value, kind):
        raise _invalid(f"{name} must be {kind.__name__}, not {type(value).__name__}")
    return value


def _int(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is not None and (type(value) is not int or abs(value) > INT64_MAX):  # bool is an int to isinstance
        raise _invalid(f"{name} must be an integer of 64 bits, not {value!r:.40}")
    return value


def _float(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is not None and type(value) not in (int, float):
        raise _invalid(f"{name} must be a number, not {value!r:.40}")
    return None if value is None else float(value)


def _invalid(message: str) -> DeadItemError:
    return DeadItemError(DeadReason.INVALID, message)
