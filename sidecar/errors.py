"""What can go wrong at the edge, split by who must act. Foreign exceptions become one of these in their adapter."""

from __future__ import annotations

import grpc

from sidecar.core.errors import SidecarError


class BadRequestError(SidecarError):
    """The caller has to change the request; the message names the field and its value."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class ModelRefusesError(BadRequestError):
    """What the model itself would refuse. Its answer would say whose it is, and that no more follows."""


class UnknownModelError(BadRequestError):
    """The caller named a model that no engine serves."""

    code = grpc.StatusCode.NOT_FOUND


class EngineError(SidecarError):
    """The engine answered a request with an error: its slot is free, its tokens are void."""

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.code = code

    @property
    def reason(self) -> str:
        """Code and message as one text, for events; `parse` undoes it."""
        return f"{self.code.name}: {self}"

    @staticmethod
    def parse(reason: str) -> tuple[grpc.StatusCode, str]:
        """Code and message of a `reason`; INTERNAL for any other text."""
        name, separator, message = reason.partition(": ")
        if separator and name in grpc.StatusCode.__members__:
            return grpc.StatusCode[name], message
        return grpc.StatusCode.INTERNAL, reason

    @property
    def retryable(self) -> bool:
        """True if the same request may succeed later."""
        return self.code not in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.ALREADY_EXISTS,
        )


class MalformedAnswerError(EngineError):
    """The engine's answer cannot be read. It may go on with the request, so its slot is not free yet."""

    def __init__(self, message: str) -> None:
        super().__init__(message, grpc.StatusCode.INTERNAL)


class StreamBrokenError(SidecarError):
    """The stream to the engine ended without a final response: the engine may still run the request."""
