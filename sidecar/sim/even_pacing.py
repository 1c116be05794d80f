"""What even pacing would give beside decoding online requests, by arithmetic: a line to hold the front against.

While online decodes r rows, each iteration also takes R offline rows and as many prompt tokens as keep R rows alive:
the offline prompt tokens per output token, times R. The iteration grows from L to L', so do the answers of online, and
offline gets R ÷ L' tokens per second; in the time in which the engine has nothing of online, it gets the ceiling.
Nothing is missed and nothing is interrupted, so a scheduler comes near to it from below. Online prompts are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.random import default_rng

from sidecar.inflight.profile import IterationTimes
from sidecar.sim.lengths import Mix, TokenLengths

DRAWN = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class EvenPace:
    """R offline rows in every iteration: the answers of online take `e2e_ratio` times as long."""

    rows: int
    e2e_ratio: float
    harvest: float


def even_paces(
    profile: IterationTimes, mix: Mix, slots: int, *, online_rows: float, idle_ratio: float, ceiling_per_s: float
) -> Sequence[EvenPace]:
    """Return a pace for each number of offline rows that the slots have room for."""
    prompt, output = _mean(mix.offline_prompt), _mean(mix.offline_output)
    ours, theirs = prompt + output / 2, _mean(mix.online_prompt) + _mean(mix.online_output) / 2
    rows = max(1, round(online_rows))
    alone_s = profile.iteration_s(rows, 0, rows * theirs)
    found = []
    for more in range(1, slots - rows + 1):
        prompts = ceil(more * prompt / output)
        one_s = profile.iteration_s(rows + more, prompts, rows * theirs + more * ours, prompts * prompt / 2)
        beside = min(1.0, more / one_s / ceiling_per_s)
        harvest = idle_ratio + (1 - idle_ratio) * beside
        found.append(EvenPace(rows=more, e2e_ratio=one_s / alone_s, harvest=harvest))
    return found


def harvest_at(paces: Sequence[EvenPace], e2e_ratio: float) -> float:
    """Return the most that a pace harvests whose price is no higher; 0 if every one is dearer."""
    return max((each.harvest for each in paces if each.e2e_ratio <= e2e_ratio), default=0.0)


def _mean(lengths: TokenLengths) -> float:
    return float(np.mean(lengths.draw(default_rng(0), DRAWN)))
