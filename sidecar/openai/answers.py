"""Answers in the OpenAI API's form: one object, or the chunks of a stream."""

from __future__ import annotations

import json
import time
from typing import Any

from sidecar.core.request import EndReason, Lane
from sidecar.offline.item import completion_tokens
from sidecar.openai.api_request import FLEX, ApiRequest
from sidecar.token_call import Generated

DONE = b"data: [DONE]\n\n"


class ApiAnswer:
    """Writes the answer of one request."""

    def __init__(self, asked: ApiRequest) -> None:
        self._asked = asked
        self._item = asked.item
        self._created = int(time.time())
        self._begun = False

    def whole(self, text: str, generated: Generated) -> dict[str, Any]:
        """The object of a request that does not stream."""
        choice = (
            {"message": {"role": "assistant", "content": text, "refusal": None}} if self._item.chat else {"text": text}
        )
        object = "chat.completion" if self._item.chat else "text_completion"
        return self._document(object, [self._choice(choice, generated)], self._usage(generated))

    def chunk(self, text: str, generated: Generated | None = None) -> bytes:
        """One event of a stream. The first of a chat names the role; the one with `generated` says why it ends."""
        piece: dict[str, Any] = {"content": text} if text else {}
        if not self._begun:
            piece = {"role": "assistant", "content": text}
            self._begun = True
        choice = {"delta": piece} if self._item.chat else {"text": text}
        usage = {"usage": None} if self._asked.usage else {}
        return event(self._document(self._chunk, [self._choice(choice, generated)]) | usage)

    def usage_chunk(self, generated: Generated) -> bytes:
        """The last event of a stream whose program asked for the usage."""
        return event(self._document(self._chunk, [], self._usage(generated)))

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self._item.chat else "text_completion"

    def _document(self, kind: str, choices: list[Any], usage: Any = None) -> dict[str, Any]:
        tier = FLEX if self._asked.lane is Lane.OFFLINE else "default"
        found = {
            "id": self._asked.id,
            "object": kind,
            "created": self._created,
            "model": self._item.model_asked,
            "choices": choices,
            "service_tier": tier,
        }
        return found if usage is None else {**found, "usage": usage}

    def _choice(self, content: dict[str, Any], generated: Generated | None) -> dict[str, Any]:
        finish = None
        if generated is not None:
            finish = "length" if generated.reason is EndReason.LENGTH else "stop"
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish}

    def _usage(self, generated: Generated) -> dict[str, int]:
        prompt, completion = len(self._item.call.prompt_ids), completion_tokens(self._item, generated)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def event(document: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
