"""What a program gets instead of an answer: a status and the error object of the OpenAI API.

No text here holds a prompt or an output.
"""

from __future__ import annotations

import json
from math import ceil
from typing import Any

import grpc
from aiohttp import web

from sidecar.core.events import RejectReason
from sidecar.errors import EngineError
from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.token_call import RequestDeadError, RequestRejectedError

_REFUSALS = {
    RejectReason.QUEUE_FULL: (429, "rate_limit_exceeded"),
    RejectReason.UNKNOWN_MODEL: (404, "model_not_found"),
    RejectReason.TOO_LARGE: (400, "context_length_exceeded"),
    RejectReason.ENGINE_DOWN: (503, "engine_down"),
    RejectReason.EXPIRED: (408, "request_timeout"),
    RejectReason.CLOSING: (503, "shutting_down"),
}
_STATUSES = {DeadReason.TOO_LARGE: 413, DeadReason.UNKNOWN_MODEL: 404, DeadReason.UNSUPPORTED_URL: 404}
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal, or a failure. `code` and `param` are words of the OpenAI API where it has one."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def document(self) -> dict[str, Any]:
        """The object that the body holds."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> web.Response:
        """The whole answer. A program of the OpenAI package waits `Retry-After` seconds before its next try."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(ceil(self.retry_after_s))}
        return web.json_response(self.document(), status=self.status, headers=headers, dumps=_dumps)


def _dumps(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False)


def api_error(error: BaseException) -> ApiError:
    """For whatever reading or running a request raised."""
    match error:
        case ApiError():
            return error
        case DeadItemError():
            return ApiError(_STATUSES.get(error.reason, 400), str(error), code=error.code, param=error.param)
        case RequestRejectedError():
            status, code = _REFUSALS[RejectReason(error.reason)]
            return ApiError(status, str(error), code=code, retry_after_s=error.retry_after_s)
        case RequestDeadError():
            refused, message = EngineError.parse(error.reason)
            status = 400 if refused is grpc.StatusCode.INVALID_ARGUMENT else 502
            return ApiError(status, f"the engine failed: {message}", code="engine_error")
        case _:  # ours; its text may hold what was asked
            return ApiError(500, f"the sidecar failed: {type(error).__name__}", code="internal_error")
