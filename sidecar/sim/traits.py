"""What makes one simulated engine unlike another of the same profile: its KV cache, its stops, its unsteadiness."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTraits:
    """How an engine differs from the profile. The defaults change nothing."""

    kv_tokens_max: int | None = None  # None = what the profile leaves beside the weights
    kv_reuse: bool = True
    stop_poll_s: float = 0.0  # stops are looked for so often; 0 = each is seen as it comes
    jitter: float = 0.0  # standard deviation of the logarithm of an iteration time
    stall_share: float = 0.0  # of the iterations, that take `stall_s` longer
    stall_s: float = 0.2

    @property
    def steady(self) -> bool:
        """True if an iteration takes what the profile says."""
        return self.jitter == 0 and self.stall_share == 0

    def stretched_s(self, iteration_s: float, rng: Generator) -> float:
        """Return how long an iteration takes that the profile gives `iteration_s`. Its mean without stalls is that."""
        factor = float(rng.lognormal(-(self.jitter**2) / 2, self.jitter))
        return iteration_s * factor + (self.stall_s if rng.random() < self.stall_share else 0.0)


AS_THE_PROFILE = EngineTraits()
