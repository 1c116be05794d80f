"""Finds dispatches that an engine has forgotten: no token for so long that none is to be expected any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from sidecar.core.events import Dispatch
from sidecar.driver.dispatches import Dispatched
from sidecar.errors import BadRequestError, EngineError
from sidecar.triton import wire

logger = logging.getLogger(__name__)
PREFILL_TOKENS_PER_S = 500  # a 70B model on the fewest GPUs that hold it computes prompts several times faster
OUTPUT_TOKENS_PER_S = 5  # of one sequence in a full batch: several times faster too
LOOKS_PER_TIMEOUT = 10
LATE_MIN_S = 0.25  # a busy host is late by some tens of milliseconds


class Watchdog:
    """Looks at the dispatches while any is in flight, and tells `stalled` of each that is silent for too long."""

    def __init__(
        self,
        timeout_s: float,
        in_flight: Callable[[], Iterable[Dispatched]],
        stalled: Callable[[Dispatched], None],
    ) -> None:
        """`timeout_s`: between two tokens, and beyond what the first one takes; 0 = none is too long."""
        self._timeout_s = timeout_s
        self._in_flight = in_flight
        self._stalled = stalled
        self._timer: asyncio.TimerHandle | None = None
        self._late_s = 0.0  # a look that comes later than this says nothing of engines

    def patience_s(self, dispatch: Dispatch, request: Any) -> float:
        """How long this request may go without its first response: longer for a long prompt, and for an answer that
        comes in one piece."""
        prompt_tokens = sum(int(each.shape[-1]) for each in request.inputs if each.name == "input_ids" and each.shape)
        seconds = self._timeout_s + prompt_tokens / PREFILL_TOKENS_PER_S
        return seconds if _streams(request) else seconds + dispatch.output_tokens / OUTPUT_TOKENS_PER_S

    def watch(self) -> None:
        """Look from now on, until nothing is in flight."""
        if self._timer is None and self._timeout_s:
            loop, period_s = asyncio.get_running_loop(), self._timeout_s / LOOKS_PER_TIMEOUT
            self._late_s = loop.time() + period_s + max(period_s, LATE_MIN_S)
            self._timer = loop.call_later(period_s, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def silences_s(self) -> dict[str, float]:
        """By engine: the longest time without a token of the dispatches in flight."""
        now_s, found = asyncio.get_running_loop().time(), dict[str, float]()
        for each in self._in_flight():
            name = each.dispatch.engine
            found[name] = max(found.get(name, 0.0), now_s - each.heard_s)
        return found

    def _look(self) -> None:
        self._timer = None
        now_s, found = asyncio.get_running_loop().time(), list(self._in_flight())
        # Whoever held up the loop held up the tokens too: they are read before anybody is judged.
        for each in found if now_s < self._late_s else ():
            patience_s = self._timeout_s if each.last_token_s is not None else each.patience_s or self._timeout_s
            if now_s - each.heard_s > patience_s and not each.stopping:
                message = f"the engine gave no token for {now_s - each.heard_s:.1f} s"
                logger.warning("dispatch %s to engine %s: %s", each.request_id, each.dispatch.engine, message)
                each.fault = each.fault or EngineError(message, grpc.StatusCode.UNAVAILABLE)
                self._stalled(each)
        if found:
            self.watch()


def _streams(request: Any) -> bool:
    """True if the engine was asked to answer token by token."""
    try:
        return any(wire.scalar(request, name, False) for name in ("streaming", "stream"))
    except BadRequestError:
        return False
