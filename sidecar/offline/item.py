"""Offline items: a Kafka record becomes a call of the engine, and what the engine gave becomes a result.

A value is one line of the OpenAI Batch format for /v1/completions or /v1/chat/completions, or the short form
`{"id", "prompt" | "messages" | "input_ids", "max_tokens", …}` (`item_format.py`, kafka/item.schema.json); a result is
a line of that format's output (kafka/result.schema.json). Whatever cannot be read is a dead letter with a reason, never
an exception in the lane.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sidecar.core.request import EndReason
from sidecar.offline.dead_letters import MESSAGE_CHARS_MAX
from sidecar.offline.dead_letters import DeadItemError as DeadItemError  # others know them from here
from sidecar.offline.dead_letters import DeadReason as DeadReason
from sidecar.offline.item_fields import NAME_CHARS_MAX
from sidecar.offline.item_format import ChatLine, ItemParameters, Message, ShortItem
from sidecar.offline.item_reader import parameters, read_line
from sidecar.offline.item_sampling import sampling_of
from sidecar.settings.aliases import Aliases, routed
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.tracing import parse
from sidecar.token_call import Generated, TokenCall
from sidecar.triton.chat_template import ChatTemplateError
from sidecar.triton.tokenizer import TextTooLongError, Tokens

# A null value is a legal header; aiokafka gives None for it and takes None back.
Headers = tuple[tuple[str, bytes], ...]

PREFIX_IDS = 64  # prompts that share this many leading ids share at least one block of any engine's KV cache
SPECIAL_TOKENS_MAX = 8  # that a tokenizer's own template adds to a prompt
TENANT_DEFAULT = "default"
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:(?P<second>\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


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
        """The last header of this name, in any case of letters, as text, or None.

        Raises DeadItemError if it is not UTF-8.
        """
        for key, value in reversed(self.headers):
            if key.lower() == name.lower():
                try:
                    return None if value is None else value.decode()
                except UnicodeDecodeError:
                    raise _invalid(name, f"header {name} is not UTF-8") from None
        return None

    def name(self, header: str) -> str | None:
        """The name in a header; None if it is absent or empty. Raises DeadItemError if it is none."""
        text = self.header(header)
        if text and not is_name(text):
            raise _invalid(header, f"header {header} must be {NAME_RULE}, not {len(text)} characters of another kind")
        return text or None

    @property
    def source(self) -> str:
        """topic/partition/offset: unique within one cluster."""
        return f"{self.topic}/{self.partition}/{self.offset}"


NAME_RULE = f"1 to {NAME_CHARS_MAX} printable characters"


def is_name(text: str) -> bool:
    """True if the text may name a tenant, a job or a model: it becomes a label of metrics and a part of log lines."""
    return 0 < len(text) <= NAME_CHARS_MAX and text.isprintable()


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRules:
    """What an item is held against. `tokens_max` is, per known model, prompt + output of one sequence."""

    tokens_max: Mapping[str, int]
    aliases: Aliases = field(default_factory=dict)
    model_default: str
    item_bytes_max: int
    max_tokens_default: int

    @classmethod
    def of(cls, settings: OfflineSettings, tokens_max: Mapping[str, int], aliases: Aliases | None = None) -> ItemRules:
        """The rules of a lane with these settings."""
        return cls(
            tokens_max=tokens_max,
            aliases=aliases or {},
            model_default=settings.model_default,
            item_bytes_max=settings.item_bytes_max,
            max_tokens_default=settings.max_tokens_default,
        )

    @property
    def models(self) -> list[str]:
        """Every name that an item may ask for."""
        return sorted((*self.tokens_max, *self.aliases))

    def prompt_tokens_max(self, model: str) -> int:
        """The most that any engine which may serve `model` takes."""
        rules = self.aliases.get(model)
        return max(self.tokens_max[rule.model] for rule in rules) if rules else self.tokens_max[model]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One readable item: what to generate, and what its result has to repeat."""

    custom_id: str
    chat: bool
    model: str  # the engine's
    model_asked: str  # the name that the producer used: an alias, or the engine's
    call: TokenCall
    tenant: str
    job: str | None
    deadline: datetime | None
    prefix_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedItem:
    """An item as its record states it: all that is known without a tokenizer."""

    custom_id: str
    chat: bool
    openai: bool  # False for the short form
    asked: ItemParameters
    prompt: str | tuple[int, ...] | list[Message]
    model_asked: str
    output_tokens_max: int
    tenant: str
    job: str | None
    deadline: datetime | None


def read_stated(record: Record, rules: ItemRules) -> StatedItem:
    """The item of this record, not tokenised. Raises DeadItemError."""
    line = read_line(record.value, rules.item_bytes_max)
    asked = parameters(line)
    model = record.name("x-model") or asked.model or rules.model_default
    if model not in rules.tokens_max and model not in rules.aliases:
        message = f"no engine for model {model!r}; known: {rules.models}"
        raise DeadItemError(DeadReason.UNKNOWN_MODEL, message, param="model")
    output_tokens_max = asked.output_tokens_max or rules.max_tokens_default
    if (asked.min_tokens or 0) > output_tokens_max:
        raise _invalid("min_tokens", f"min_tokens {asked.min_tokens} exceeds max_tokens {output_tokens_max}")
    short, prompt = isinstance(line, ShortItem), getattr(asked, _prompt_name(asked))
    return StatedItem(
        custom_id=line.id if isinstance(line, ShortItem) else line.custom_id,
        chat=isinstance(line, ChatLine) or isinstance(prompt, list),
        openai=not short,
        asked=asked,
        prompt=prompt,
        model_asked=model,
        output_tokens_max=output_tokens_max,
        tenant=record.name("x-tenant") or TENANT_DEFAULT,
        job=record.name("x-job"),
        deadline=deadline_of(record.header("x-deadline") or None),
    )


def read_item(record: Record, rules: ItemRules, tokens: Tokens) -> Item:
    """The item of this record, tokenised. Raises DeadItemError for whatever will never become a result.

    CPU-bound (JSON and the tokenizer): call it in a thread.
    """
    stated = read_stated(record, rules)
    if tokens.further_end_ids and stated.asked.min_tokens:
        message = "min_tokens is not served by a model with several end ids: the engine holds back only the first"
        raise _invalid("min_tokens", message)
    prompt_ids = _prompt_ids(stated, rules, tokens)
    model, output_tokens_max = stated.model_asked, stated.output_tokens_max
    if rule := rules.aliases.get(model):
        model = routed(rule, len(prompt_ids), output_tokens_max, stated.tenant, record.header)
    if len(prompt_ids) + output_tokens_max > rules.tokens_max[model]:
        message = (
            f"prompt of {len(prompt_ids)} tokens + max_tokens {output_tokens_max} "
            f"exceed the {rules.tokens_max[model]} tokens of {model}"
        )
        raise DeadItemError(DeadReason.TOO_LONG, message, param=_prompt_name(stated.asked))
    sampling, resumable = sampling_of(stated.asked, record.source, openai=stated.openai)
    stop_texts = stated.asked.stop_texts
    return Item(
        custom_id=stated.custom_id,
        chat=stated.chat,
        model=model,
        model_asked=stated.model_asked,
        call=TokenCall(
            prompt_ids=prompt_ids,
            output_tokens_max=output_tokens_max,
            sampling=sampling,
            stop_texts=stop_texts,
            decode=tokens.decode if stop_texts else None,
            end_id=tokens.end_id,
            further_end_ids=tokens.further_end_ids,
            traceparent=_traceparent(record),
            resumable=resumable,
        ),
        tenant=stated.tenant,
        job=stated.job,
        deadline=stated.deadline,
        prefix_key=_prefix_key(prompt_ids),
    )


def check_item(record: Record, rules: ItemRules, tokens: Tokens | None) -> str:
    """The id of this item, which the lane will read. Raises DeadItemError. Without `tokens` no length is checked."""
    stated = read_stated(record, rules)
    if tokens is not None and not _fits_by_bytes(stated, rules):
        read_item(record, rules, tokens)
    return stated.custom_id


def _fits_by_bytes(stated: StatedItem, rules: ItemRules) -> bool:
    """True if the prompt fits every model that may serve it even if each of its bytes were a token: mostly so."""
    if not isinstance(stated.prompt, str):
        return False
    aliased = rules.aliases.get(stated.model_asked)
    models = [rule.model for rule in aliased] if aliased else [stated.model_asked]
    tokens_max = min(rules.tokens_max[model] for model in models)
    return len(stated.prompt.encode()) + SPECIAL_TOKENS_MAX + stated.output_tokens_max <= tokens_max


def completion_tokens(item: Item, generated: Generated) -> int:
    """Return how many tokens the answer has, without the end id.

    The engine holds back the first end id and sends a further one: the count must not depend on which of them it was.
    """
    ids, call = generated.output_ids, item.call
    ended = generated.reason is EndReason.END_ID and ids and ids[-1] in (call.end_id, *call.further_end_ids)
    return len(ids) - 1 if ended else len(ids)


def result_value(
    record: Record, item: Item, generated: Generated, tokens: Tokens, created_s: float | None = None
) -> bytes:
    """The result as one line of the OpenAI Batch output format, a `sidecar` object beside it. UTF-8, no newline.

    `created_s` is when it was made, in seconds since 1970; None is now.
    """
    text = tokens.decode(generated.output_ids) if generated.text is None else generated.text
    finish = "length" if generated.reason is EndReason.LENGTH else "stop"
    content = {"message": {"role": "assistant", "content": text, "refusal": None}} if item.chat else {"text": text}
    prompt, completion = len(item.call.prompt_ids), completion_tokens(item, generated)
    body = {
        "id": record.source,
        "object": "chat.completion" if item.chat else "text_completion",
        "created": int(time.time() if created_s is None else created_s),
        "model": item.model_asked,
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


def result_headers(record: Record, group: str) -> Headers:
    """The item's own headers, then where it came from: the exact provenance that lets a checker prove exactly-once."""
    own = tuple(header for header in record.headers if not header[0].startswith("x-source-"))
    return (
        *own,
        ("x-source-topic", record.topic.encode()),
        ("x-source-partition", str(record.partition).encode()),
        ("x-source-offset", str(record.offset).encode()),
        ("x-source-group", group.encode()),
    )


def dead_headers(record: Record, group: str, error: DeadItemError, stage: str, first_seen_ms: int) -> Headers:
    """The item's own headers untouched, then why and from where. Key and value stay byte for byte the item's."""
    texts = {
        "dlq.error.class": error.reason.value,
        "dlq.error.message": str(error)[:MESSAGE_CHARS_MAX],
        "dlq.error.openai": error.openai(),
        "dlq.error.stage": stage,
        "dlq.original.topic": record.topic,
        "dlq.original.partition": str(record.partition),
        "dlq.original.offset": str(record.offset),
        "dlq.original.group": group,
        "dlq.original.timestamp": str(record.timestamp_ms),
        "dlq.attempts": str(error.attempts),
        "dlq.first_seen": str(first_seen_ms),
    }
    return (*record.headers, *((name, text.encode(errors="backslashreplace")) for name, text in texts.items()))


def _prompt_name(asked: ItemParameters) -> str:
    """The field that holds the prompt."""
    return next(name for name in ("messages", "prompt", "input_ids") if getattr(asked, name) is not None)


def _prompt_ids(stated: StatedItem, rules: ItemRules, tokens: Tokens) -> tuple[int, ...]:
    prompt, name = stated.prompt, _prompt_name(stated.asked)
    if isinstance(prompt, tuple):
        if tokens.vocabulary is not None and max(prompt) >= tokens.vocabulary:
            message = f"{name} holds the id {max(prompt)}; the vocabulary has 0..{tokens.vocabulary - 1}"
            raise _invalid(name, message)
        return prompt
    tokens_max = rules.prompt_tokens_max(stated.model_asked)
    try:
        if isinstance(prompt, str):
            ids = tokens.prompt_ids(prompt, tokens_max)
        else:
            ids = tokens.chat_ids([(each.role, _content(each)) for each in prompt], tokens_max)
    except ChatTemplateError as error:
        raise DeadItemError(DeadReason.CHAT_TEMPLATE, f"{name}: {error}", param=name) from None
    except TextTooLongError as error:
        raise DeadItemError(DeadReason.TOO_LONG, f"{name}: {error}", param=name) from None
    if not ids:
        raise _invalid(name, f"{name}: the tokenizer makes no token of this text")
    return ids


def _content(message: Message) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content)


def deadline_of(text: str | None) -> datetime | None:
    """The time that an `x-deadline` states. Raises DeadItemError unless it is RFC 3339 with an offset from UTC."""
    if text is None:
        return None
    try:
        if (found := _RFC_3339.fullmatch(text)) is not None:
            leap = found["second"] == "60"
            shown = f"{text[: found.start('second')]}59{text[found.end('second') :]}" if leap else text
            return datetime.fromisoformat(shown.upper()) + timedelta(seconds=leap)
    except (ValueError, OverflowError):
        pass  # in form, but no time: a 31st of June
    message = f"x-deadline must be a time by RFC 3339, as 2026-12-01T06:00:00Z, not {text!r:.40}"
    raise _invalid("x-deadline", message)


def _traceparent(record: Record) -> str | None:
    """The trace parent of W3C Trace Context; one that is malformed is as none, as that standard has it."""
    try:
        text = record.header("traceparent")
    except DeadItemError:
        return None
    # It becomes metadata of a gRPC call, which takes one line of ASCII alone.
    return text if text and text.isascii() and text.isprintable() and parse(text) else None


def _provenance(item: Item, generated: Generated) -> dict[str, Any]:
    running_s = generated.finished_s - generated.first_token_s
    return {
        "tenant": item.tenant,
        "job": item.job,
        "model": item.model,
        "engine": generated.engine,
        "ended_by": generated.reason.value,
        "attempts": generated.attempts,
        "resumed": generated.resumed,
        "dispatches": generated.dispatches,
        "seed": item.call.sampling.seed,
        "timing": {"queue_wait_s": round(generated.queue_wait_s, 4), "first_token_to_end_s": round(running_s, 4)},
        "cost": {
            "tokens": len(item.call.prompt_ids) + completion_tokens(item, generated),
            "dispatches": generated.dispatches,
        },
    }


def _prefix_key(ids: Sequence[int]) -> str:
    return hashlib.blake2b(repr(ids[:PREFIX_IDS]).encode(), digest_size=8).hexdigest()


def _invalid(param: str, message: str) -> DeadItemError:
    return DeadItemError(DeadReason.INVALID, message, param=param)
