"""How fast offline prompts may be computed: one chunk per iteration of the engine, whatever waits.

A prompt token lengthens the iteration it is computed in, for everyone in the batch and for whoever arrives meanwhile. A
chunk is over at the boundary of two iterations, and a dispatch that answers it is computed in the next but one: so the
pace keeps two under way, never two in one iteration. A bucket holds one chunk. The end of a chunk fills it; time alone
fills it more slowly than the engine iterates, or two chunks that met in one long iteration would be followed by two.
The few tokens that a resume recomputes go through beside a chunk.
"""

from __future__ import annotations

from math import inf

SLOWER = 1.5  # times an iteration, until time alone has filled the bucket


class PrefillPace:
    """A token bucket of `step` tokens. A step of 0 allows everything."""

    __slots__ = ("_at_s", "_boundary_s", "_level")

    def __init__(self) -> None:
        self._level = 0.0
        self._at_s = self._boundary_s = -inf

    def refill(self, step: int, now_s: float, iteration_s: float) -> None:
        """Save what the time since the last refill allowed, at the length that iterations have now."""
        if step:
            self._level = min(step, self._level + (now_s - self._at_s) * step / (SLOWER * iteration_s))
            self._at_s = now_s

    def boundary(self, step: int, now_s: float) -> None:
        """A chunk is over: the next iteration has room. Two that are over at once make room for one."""
        if now_s > self._boundary_s:
            self._boundary_s = now_s
            self._level = max(self._level, float(step))

    def allows(self, tokens: int, step: int) -> bool:
        """True if so many tokens (of more than a step: a step of them) could be added at the last refill."""
        return not step or self._level + 1e-6 >= min(tokens, step)

    def take(self, tokens: int) -> None:
        """So many tokens were sent. A long prompt sent as a whole is paid off by as many iterations."""
        self._level -= tokens

    def next_s(self, tokens: int, step: int, iteration_s: float) -> float:
        """When so many tokens are allowed next, if none are taken before. They are not allowed now."""
        return self._at_s + max(0.0, min(tokens, step) - self._level) * SLOWER * iteration_s / step
