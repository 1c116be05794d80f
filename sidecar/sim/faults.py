"""What goes wrong in a simulation: rates drawn from the seed, so that every seed has its own weather."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from numpy.random import Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchFault:
    """What befalls one dispatch, `after_s` after it began, if it still runs then."""

    after_s: float
    lost: bool  # the stream breaks; otherwise the engine answers with an error
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRates:
    """Probabilities per arrival (cancel) and per dispatch (fail, lose); downs are per second and engine."""

    cancel: float = 0.0
    fail: float = 0.0
    lose: float = 0.0
    retryable: float = 1.0  # of the failures
    down_per_s: float = 0.0
    after_s: float = 1.0  # mean time from the dispatch or arrival to its fault; of an engine that is down

    @classmethod
    def drawn(cls, rng: Generator) -> FaultRates:
        """Each kind of fault is absent in half of the runs and up to frequent in the rest."""
        cancel, fail, lose, down = (float(rng.uniform(0, 0.3)) * bool(rng.random() < 0.5) for _ in range(4))
        return cls(
            cancel=cancel,
            fail=fail,
            lose=lose,
            retryable=float(rng.choice([0.5, 0.9, 1.0])),
            down_per_s=down / 10,
            after_s=float(rng.choice([0.05, 0.5, 3.0])),
        )


class SimulatedFaults:
    """Draws the faults of one run. `stop()` ends them: from then on nothing goes wrong (the liveness phase)."""

    def __init__(self, rng: Generator | None = None, rates: FaultRates | None = None) -> None:
        self._rng = rng
        self.rates = rates or FaultRates()

    def stop(self) -> None:
        """No further fault is drawn."""
        self.rates = FaultRates()

    def cancel_after_s(self) -> float:
        """Return how long after its arrival the caller gives up; inf for never."""
        return self._after_s() if self._hits(self.rates.cancel) else inf

    def of_dispatch(self) -> DispatchFault | None:
        """Return what befalls the dispatch that begins now, if anything."""
        if self._hits(self.rates.fail):
            return DispatchFault(after_s=self._after_s(), lost=False, retryable=self._hits(self.rates.retryable))
        if self._hits(self.rates.lose):
            return DispatchFault(after_s=self._after_s(), lost=True, retryable=True)
        return None

    def down_after_s(self) -> float:
        """Return how long until the next engine goes down; inf for never."""
        if self._rng is None or not self.rates.down_per_s:
            return inf
        return float(self._rng.exponential(1 / self.rates.down_per_s))

    def up_after_s(self) -> float:
        """Return how long an engine stays down."""
        return self._after_s()

    def _hits(self, probability: float) -> bool:
        return self._rng is not None and probability > 0 and bool(self._rng.random() < probability)

    def _after_s(self) -> float:
        return inf if self._rng is None else float(self._rng.exponential(self.rates.after_s))
