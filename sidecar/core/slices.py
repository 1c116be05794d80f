"""Slices: how much of an offline request runs per dispatch, and whether the engine still remembers it at the next one.

A slice bounds how long a slot is held without stopping anything, how much KV the engine reserves, and what a lost
engine costs. Its price is the recomputation at each seam: next to nothing while the KV cache still holds the request's
blocks, the whole context if it does not. So reuse is measured, and where it fails slices get wider and then end.
"""

from __future__ import annotations

from sidecar.core.tracked_request import TrackedRequest

SAMPLES = 32  # resumes per verdict
REUSE_LOW, REUSE_HIGH = 0.90, 0.95
WIDEST = 8  # times the configured length; beyond it requests run in one piece
HIT_WEIGHT = 0.05


class Slices:
    """The slice length of one engine, as wide as reuse asks for."""

    __slots__ = ("_expected", "_reused", "_samples", "_tokens", "_tokens_busy", "factor", "hit")

    def __init__(self, tokens: int, tokens_busy: int) -> None:
        self._tokens = tokens
        self._tokens_busy = tokens_busy or tokens
        self._expected = self._reused = self._samples = 0
        self.factor = 1  # how often the configured length; 0 = no slices
        self.hit = 1.0  # share of the expected tokens that resumes found in the cache

    def output_tokens(self, tracked: TrackedRequest, *, online_resident: bool) -> int:
        """How many tokens the next dispatch of `tracked` may generate: a slice, or all that is left."""
        tokens = min(self._tokens, self._tokens_busy) if online_resident else self._tokens
        if not tokens or not self.factor or not tracked.request.resumable:
            return tracked.output_tokens_left
        return min(tokens * self.factor, tracked.output_tokens_left)

    def observe(self, expected_tokens: int, reused_tokens: int) -> None:
        """A resume should have found `expected_tokens` in the cache, and found so many."""
        reused_tokens = min(expected_tokens, reused_tokens)
        self.hit += HIT_WEIGHT * (reused_tokens / expected_tokens - self.hit)
        self._expected += expected_tokens
        self._reused += reused_tokens
        self._samples += 1
        if self._samples == SAMPLES:
            self._judge(self._reused / self._expected)
            self._expected = self._reused = self._samples = 0

    def _judge(self, share: float) -> None:
        if share < REUSE_LOW:
            self.factor = self.factor * 2 if 0 < self.factor < WIDEST else 0
        elif share >= REUSE_HIGH and self.factor != 1:
            self.factor = self.factor // 2 or WIDEST
