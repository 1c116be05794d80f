"""How the next token is drawn from the logits, for all rows of an iteration together.

Greedy unless a row asks for more (top_k 0 or 1 and top_p 0, TensorRT-LLM's defaults). The randomness of a row is a
function of (its seed, its token number in this call): no state, and nobody else's draws change it. As upstream, the
numbering starts anew in a resumed call, while the penalties go on: they count prompt and output alike
(penaltyKernels.cu).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSampling:
    """What a request asks for; the names of the engine's tensors without `runtime_`. Raises ValueError on nonsense."""

    temperature: float = 1.0
    top_k: int = 0  # 0 = no limit
    top_p: float = 0.0  # 0 = no limit
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 <= self.top_p <= 1):
            raise ValueError(f"needs temperature >= 0, top_k >= 0 and top_p in 0..1: {self}")
        if not self.repetition_penalty > 0 or self.min_tokens < 0:
            raise ValueError(f"needs repetition_penalty > 0 and min_tokens >= 0: {self}")
        floats = (self.temperature, self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        if not all(map(isfinite, floats)):
            raise ValueError(f"needs finite numbers: {self}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1 or (self.top_k == 0 and self.top_p == 0)

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def penalise(logits: Floats, counts: NDArray[np.int32], sampling: EngineSampling) -> None:
    """Lower, in place, the logits of one row for tokens it has said `counts` times.

    Repetition: Keskar et al. 2019 (divide positive, multiply negative); presence and frequency: as the OpenAI API.
    """
    said = counts > 0
    logits[said] = np.where(
        logits[said] > 0, logits[said] / sampling.repetition_penalty, logits[said] * sampling.repetition_penalty
    )
    logits -= sampling.presence_penalty * said + sampling.frequency_penalty * counts


def draw(logits: Floats, samplings: list[EngineSampling], numbers: list[int]) -> NDArray[np.int64]:
    """One column per row of `logits`; `numbers` is each row's token number in its call."""
    chosen: NDArray[np.int64] = logits.argmax(axis=1)
    rows = [row for row, sampling in enumerate(samplings) if not sampling.greedy]
    if rows:
        chosen[rows] = _draw_random(logits[rows], [samplings[row] for row in rows], [numbers[row] for row in rows])
    return chosen


def _draw_random(logits: Floats, samplings: list[EngineSampling], numbers: list[int]) -> NDArray[np.int64]:
    """Temperature, then top-k, then top-p, then the Gumbel-max trick: the largest of logit + Gumbel noise."""
    width = logits.shape[1]
    scaled = logits / np.array([[each.temperature] for each in samplings], np.float32)
    order = np.argsort(-scaled, axis=1, kind="stable")
    ranked = np.take_along_axis(scaled, order, axis=1)
    top_k = np.array([[each.top_k or width] for each in samplings])
    ranked[np.arange(width) >= top_k] = -np.inf
    shares = np.exp(ranked - ranked[:, :1])
    shares /= shares.sum(axis=1, keepdims=True)
    before = np.cumsum(shares, axis=1) - shares
    top_p = np.array([[each.top_p or 1.0] for each in samplings])
    ranked[before >= top_p] = -np.inf  # the first is always kept: nothing is before it
    best = (ranked + _gumbel(samplings, numbers, width)).argmax(axis=1)
    chosen: NDArray[np.int64] = np.take_along_axis(order, best[:, None], axis=1)[:, 0]
    return chosen


def _gumbel(samplings: list[EngineSampling], numbers: list[int], width: int) -> NDArray[np.float64]:
    """Gumbel noise per row and column, from splitmix64 (Steele et al. 2014) of (seed, number, column)."""
    seeds = np.array([each.seed % 2**64 for each in samplings], np.uint64)
    rows = _mix(_mix(seeds) ^ np.array(numbers, np.uint64))
    cells = _mix(np.add.outer(rows, np.arange(width, dtype=np.uint64)))
    uniform = (cells >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = value + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
