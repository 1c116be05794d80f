"""What a run gave, in figures: latency against a reference, harvest, waste, and the promise to the offline lane.

Ratios are fractions, times in the unit of their name. Two policies are compared on the same arrivals; intervals come
from a paired bootstrap over blocks of time, because requests of one burst suffer together and are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.random import default_rng

from sidecar.core.errors import SidecarError

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
BLOCK_S = 300.0  # of the bootstrap: five minutes hold a burst and its aftermath


class MeasurementError(SidecarError):
    """A figure that cannot be true, or nothing to compute it from: the measurement is wrong, not the scheduler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One online request that was answered in full, in seconds."""

    id: str
    tenant: str
    arrived_s: float
    ttft_s: float
    e2e_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The same requests under the reference and under a policy: values and the block of time each fell in."""

    reference: Floats
    policy: Floats
    block: np.ndarray[tuple[int], np.dtype[np.int64]]  # distinct across seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A statistic with its 95 % interval."""

    mean: float
    ci_low: float
    ci_high: float


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99; None without values."""
    return {f"p{p}": round(float(np.percentile(values, p)), 2) if values else None for p in (50, 95, 99)}


def pair(runs: Sequence[tuple[Sequence[Served], Sequence[Served]]], value: Callable[[Served], float]) -> Paired:
    """Requests that both answered, seed by seed: (reference, policy) each. Raises MeasurementError without any."""
    reference: list[float] = []
    policy: list[float] = []
    blocks: list[int] = []
    for seed, (alone, mixed) in enumerate(runs):
        found = {each.id: each for each in mixed}
        both = [(each, found[each.id]) for each in alone if each.id in found]
        reference += [value(one) for one, _ in both]
        policy += [value(other) for _, other in both]
        blocks += [seed * 1_000_000 + int(one.arrived_s // BLOCK_S) for one, _ in both]
    if not reference:
        raise MeasurementError("no online request was answered in both runs: nothing to compare")
    return Paired(reference=np.array(reference), policy=np.array(policy), block=np.array(blocks))


def ratio(paired: Paired, percentile: float) -> Estimate:
    """percentile(policy) ÷ percentile(reference)."""
    return _bootstrap(paired, lambda one, other: _at(other, percentile) / _at(one, percentile))


def added(paired: Paired, percentile: float) -> Estimate:
    """percentile(policy) − percentile(reference), in the unit of the values."""
    return _bootstrap(paired, lambda one, other: _at(other, percentile) - _at(one, percentile))


def mean_ratio(paired: Paired) -> Estimate:
    """mean(policy) ÷ mean(reference)."""
    return _bootstrap(paired, lambda one, other: float(np.mean(other) / np.mean(one)))


def mean_added(paired: Paired) -> Estimate:
    """The mean of what the policy added to each request, in the unit of the values: the price."""
    return _bootstrap(paired, lambda one, other: float(np.mean(other) - np.mean(one)))


def paired_added(paired: Paired, percentile: float) -> float:
    """The percentile of what was added to each request, which a difference of percentiles does not show."""
    return _at(paired.policy - paired.reference, percentile)


def _at(values: Floats, percentile: float) -> float:
    return float(np.percentile(values, percentile))


def _bootstrap(paired: Paired, statistic: Callable[[Floats, Floats], float]) -> Estimate:
    """The statistic of all values, and its 2.5th and 97.5th percentile over resampled blocks, in both runs alike."""
    order = np.argsort(paired.block, kind="stable")
    starts = np.flatnonzero(np.diff(paired.block[order], prepend=-1))
    blocks = np.split(order, starts[1:])
    rng = default_rng(0)
    resamples = 1000 if len(order) < 20_000 else 200
    values = []
    for _ in range(resamples):
        rows = np.concatenate([blocks[each] for each in rng.integers(0, len(blocks), len(blocks))])
        values.append(statistic(paired.reference[rows], paired.policy[rows]))
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(mean=statistic(paired.reference, paired.policy), ci_low=float(low), ci_high=float(high))


@dataclass(slots=True, kw_only=True)
class ReservationRecord:
    """The contended dispatches of one engine, in order (True = offline's): what the reservation promises shows
    here."""

    every: int  # N
    offline: list[bool] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Offline's part of the contended dispatches; 0 if there was none."""
        return sum(self.offline) / len(self.offline) if self.offline else 0.0

    def worst_window_share(self) -> float | None:
        """The least offline share over all windows of 2N contended dispatches; None with fewer dispatches. Bound: 1 /
        2N."""
        window = 2 * self.every
        least = self._least(window)
        return None if least is None else least / window

    def violations(self) -> int:
        """Return how many windows of k·N contended dispatches hold fewer than k − 1 offline ones, k = 2 … 20."""
        sums = np.concatenate([[0], np.cumsum(self.offline)])
        found = 0
        for k in range(2, 21):
            width = k * self.every
            if len(self.offline) >= width:
                found += int(np.count_nonzero(sums[width:] - sums[:-width] < k - 1))
        return found

    def starvation_gap_dispatches(self) -> int:
        """The most contended dispatches between two offline ones (or before the first, or after the last)."""
        at = [-1, *np.flatnonzero(self.offline).tolist(), len(self.offline)]
        return max((b - a - 1 for a, b in pairwise(at)), default=0)

    def _least(self, width: int) -> int | None:
        if len(self.offline) < width:
            return None
        sums = np.concatenate([[0], np.cumsum(self.offline)])
        return int((sums[width:] - sums[:-width]).min())
