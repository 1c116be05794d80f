"""Notices an engine that computes nothing of what it has, although it answers probes.

Triton's TensorRT-LLM backend answers the stop of an unknown id without its executor, so that a step which never ends,
or a lost NCCL peer, looks healthy for ever. What cannot be mistaken is progress: no token of anybody, and the counter
of iterations stands still.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

COUNTED = 0.25  # of the patience without gauges: where the counter stands still as well, less is enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """Requests in flight on an engine, and for how long none of them has given a token."""

    requests: int
    seconds: float
    patience_s: float  # that the most patient of them allows: a long prompt takes its time


class HangWatch:
    """One engine. Look at it with each probe."""

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s`: progress_timeout_s of the settings; 0 = nothing is a hang."""
        self._timeout_s = timeout_s
        self._iterations: int | None = None
        self._moved_s = -inf  # when the counter last moved, or was first seen
        self._reason = ""
        self._since_s = -inf  # when it was found to hang
        self._stood_at: int | None = None  # the counter by then

    def counted(self, iterations: int | None, now_s: float) -> None:
        """Take in a scrape; None if it does not tell of iterations. An engine that iterates again hangs no more."""
        if iterations != self._iterations:
            self._iterations, self._moved_s = iterations, now_s
        if iterations not in (None, self._stood_at):
            self._reason = ""

    def gone(self) -> None:
        """Nobody answers there: whoever does next is another engine."""
        self._reason = ""

    def look(self, quiet: Quiet | None, now_s: float) -> str:
        """Return why the engine hangs; "" if it does not. None for `quiet`: nothing is in flight.

        It stays so until the counter moves or the server goes; and after `timeout_s` it is given another try.
        """
        if self._reason and now_s - self._since_s <= self._timeout_s:
            return self._reason
        self._reason = ""
        if quiet is not None and self._timeout_s and quiet.seconds > self._limit_s(quiet, now_s):
            still = "" if self._iterations is None else f", and its counter of iterations stands at {self._iterations}"
            self._reason = f"it hangs: no token for {quiet.seconds:.0f} s with {quiet.requests} in flight{still}"
            self._since_s, self._stood_at = now_s, self._iterations
        return self._reason

    def _limit_s(self, quiet: Quiet, now_s: float) -> float:
        """Without a counter as patient as with one dispatch; with one that stands still, less."""
        if self._iterations is None:
            return quiet.patience_s
        short_s = quiet.patience_s - (1 - COUNTED) * self._timeout_s
        return short_s if now_s - self._moved_s > short_s else inf
