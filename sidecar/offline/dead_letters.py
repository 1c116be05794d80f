"""Why an item becomes a dead letter: as a reason for metrics, as a sentence for people, as an OpenAI error object."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sidecar.core.errors import SidecarError

log = logging.getLogger(__name__)

MESSAGE_CHARS_MAX = 1000  # of the sentence in a header
TELL_EVERY_S = 60.0  # per reason: a job of a million bad items makes one line a minute


class DeadReason(StrEnum):
    """Why an item will not be tried (again). Finite: these are labels of a metric."""

    TOO_LARGE = "too_large"  # more than item_bytes_max; not parsed
    FRAMED = "schema_registry_framed"  # it begins like a record of a schema registry; send plain JSON
    NOT_UTF8 = "not_utf8"  # its value is no UTF-8
    NOT_JSON = "not_json"  # its value is no JSON
    INVALID = "invalid"  # JSON, but a field is missing, has the wrong type or cannot be honoured
    MISSING_PROMPT = "missing_prompt"  # neither prompt nor messages
    CHAT_TEMPLATE = "chat_template"  # the model has none, or it does not take these messages
    UNSUPPORTED_URL = "unsupported_url"  # a line of OpenAI Batch with a url that is not served
    UNKNOWN_MODEL = "unknown_model"  # no engine and no alias has this name
    TOO_LONG = "too_long"  # prompt + max_tokens do not fit the model
    EXPIRED = "expired"  # its deadline passed before it ran
    CANCELLED = "cancelled"  # its job was cancelled before it ended
    FAILED = "failed"  # the engine refused it for good, or each attempt failed
    EMPTY_OUTPUT = "empty_output"  # each attempt ended well and without a token
    POISON = "poison"  # it ran alone when the process was killed
    RESULT_TOO_LARGE = "result_too_large"  # the results topic takes no record of this size
    RESULT_REFUSED = "result_refused"  # by the results topic, for another reason than its size


# `code` of the error object where the OpenAI API has a word of its own; elsewhere it is the reason itself.
_OPENAI_CODES = {
    DeadReason.INVALID: "invalid_value",
    DeadReason.MISSING_PROMPT: "missing_required_parameter",
    DeadReason.UNKNOWN_MODEL: "model_not_found",
    DeadReason.TOO_LONG: "context_length_exceeded",
    DeadReason.EXPIRED: "batch_expired",
    DeadReason.CANCELLED: "batch_cancelled",
    DeadReason.FAILED: "server_error",
}
_OURS = {DeadReason.FAILED, DeadReason.EMPTY_OUTPUT, DeadReason.POISON}  # not the producer's to mend


class DeadItemError(SidecarError):
    """This item belongs on the dead-letter topic. The message never holds a prompt or an output.

    `param` is the field that is at fault, as the OpenAI API names it; `code` is its word for the fault.
    """

    def __init__(
        self,
        reason: DeadReason,
        message: str,
        attempts: int = 0,
        *,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.attempts = attempts
        self.param = param
        self.code = code or _OPENAI_CODES.get(reason, reason.value)

    def openai(self) -> str:
        """The error object of the OpenAI API, as ASCII JSON."""
        kind = "server_error" if self.reason in _OURS else "invalid_request_error"
        message = str(self)[:MESSAGE_CHARS_MAX]
        return json.dumps({"code": self.code, "message": message, "param": self.param, "type": kind})


@dataclass(slots=True)
class _Untold:
    """What happened for one reason since the last line about it."""

    told_s: float
    count: int = 0
    last: str = ""


class DeadLetterLog:
    """Writes the first dead letter of each reason at once, then how many there were, once in TELL_EVERY_S."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._reasons: dict[DeadReason, _Untold] = {}

    def tell(self, source: str, error: DeadItemError) -> None:
        """One more."""
        told = f"{source}: {error}"
        if (untold := self._reasons.get(error.reason)) is None:
            self._reasons[error.reason] = _Untold(self._clock())
            log.warning("dead letter (%s): %s; further ones of this reason are counted", error.reason, told)
            return
        untold.count += 1
        untold.last = told
        self.look()

    def look(self) -> None:
        """What was counted is written where the time has come."""
        for reason, untold in self._reasons.items():
            if self._clock() - untold.told_s >= TELL_EVERY_S:
                self._write(reason, untold)

    def close(self) -> None:
        """What was counted is written."""
        for reason, untold in self._reasons.items():
            self._write(reason, untold)

    def _write(self, reason: DeadReason, untold: _Untold) -> None:
        now_s = self._clock()
        if untold.count:
            passed_s = now_s - untold.told_s
            log.warning(
                "%d more dead letters (%s) in %.0f s; the last: %s", untold.count, reason, passed_s, untold.last
            )
            untold.count, untold.told_s = 0, now_s
