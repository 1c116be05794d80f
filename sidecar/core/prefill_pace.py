"""How fast offline prompts may be computed: about one chunk per iteration of the engine, whatever waits.

A prompt token lengthens the iteration it is computed in, for everyone in the batch and for whoever arrives meanwhile. A
bucket that fills by one chunk per iteration keeps chunks of several requests from meeting in one iteration, and lets
the few tokens that a resume recomputes through at once.
"""

from __future__ import annotations

from math import inf


class PrefillPace:
    """A token bucket: `step` tokens per iteration, never more than `step` saved. A step of 0 allows everything."""

    __slots__ = ("_at_s", "_level")

    def __init__(self) -> None:
        self._level = 0.0
        self._at_s = -inf

    def refill(self, step: int, now_s: float, iteration_s: float) -> None:
        """Save what the iterations since the last refill allowed, at the length that they have now."""
        if step:
            self._level = min(step, self._level + (now_s - self._at_s) * step / iteration_s)
            self._at_s = now_s

    def allows(self, tokens: int, step: int) -> bool:
        """True if so many tokens (of more than a step: a step of them) could be added at the last refill."""
        return not step or self._level + 1e-6 >= min(tokens, step)

    def take(self, tokens: int) -> None:
        """So many tokens were sent. A long prompt sent as a whole is paid off by as many iterations."""
        self._level -= tokens

    def next_s(self, tokens: int, step: int, iteration_s: float) -> float:
        """When so many tokens are allowed next, if none are taken before. They are not allowed now."""
        return self._at_s + max(0.0, min(tokens, step) - self._level) * iteration_s / step
