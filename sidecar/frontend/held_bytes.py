"""Bounds the bytes of all requests that this process holds for callers."""

from __future__ import annotations

import grpc

from sidecar.frontend.statuses import CallerError
from sidecar.settings.limits import LimitSettings

RETRY_AFTER_S = 1.0  # a request ends every few tens of milliseconds, and the bytes it held are free again


class HeldBytes:
    """The bytes of all requests that wait or run: under a bound on their number a few could still fill the memory."""

    def __init__(self, limits: LimitSettings | None = None) -> None:
        self.bytes_max = (limits or LimitSettings()).held_bytes_max
        self.used = 0

    def take(self, size: int) -> int:
        """`size` more bytes are held; give the same number back. Raises CallerError if that is too much."""
        if self.used + size > self.bytes_max:
            raise CallerError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"requests of {self.used} bytes wait or run, {size} more are beyond the limit of {self.bytes_max} "
                f"(limits.held_bytes_max); try again in {RETRY_AFTER_S:g} s",
                RETRY_AFTER_S,
            )
        self.used += size
        return size

    def give_back(self, size: int) -> None:
        """These bytes are held no longer."""
        self.used -= size
