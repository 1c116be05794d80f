"""How long an iteration of the engine takes, learnt from the gaps between tokens; nothing is set by hand.

    T = a0 + a1 · rows + a2 · context tokens   (+ b1 · P + b2 · P · (P/2 + C) with P prompt tokens in prefill)

Reading the weights costs the same for one row as for all (a0), which is why backfill is nearly free; attention makes
prefill quadratic (b2). A gap between two tokens of one stream is one iteration, and all streams share it: the median
of a tick is one sample. Learnt only where the ledger knows what was in the batch, and used only while predictions made
before their sample was learnt are good (`Gate`), and never far beyond what was seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from operator import mul

from sidecar.core.request import Lane

FORGETTING = 0.995  # of what a new sample tells again
RIDGE = 1e-4  # weight of the prior that a cost is 0, in samples
SAMPLES = 500  # that are judged
SAMPLES_MIN, PREFILL_SAMPLES_MIN = 80, 20  # before there is a verdict
JUDGED_EVERY = 20
WARM_UP = 20  # samples that are learnt before predictions are judged
MAPE_MAX, R2_MIN = 0.10, 0.8
OUTLIERS = 0.05  # of the samples, those with the largest errors, R² leaves out: a gap with a prompt nobody told us of
SPREAD_LEAST = 0.05  # of the mean: where times hardly differ R² says nothing, and an error of 2 % explains enough
REACH = 1.25  # times the largest seen: beyond it nothing is predicted
TICK_S = 0.010  # tokens are told at most so long after they came
SURPRISE = 0.25  # of a prediction: a trusted model learns at most so much of an error
CHANGE_SLACK = 0.25  # of a gap: what changed before it is what its iteration began with
JOIN_S = 0.002  # a dispatch that answers the end of an iteration is too late for the next, which has begun


class Fit:
    """Least squares over a stream of samples: the past fades, and no coefficient is below 0.

    Only the direction of the new sample is forgotten, so what is not seen for hours (an empty engine, say) is not
    lost while one state repeats (Cao and Schwartz, Automatica 36, 2000). Features are given in units of about 1.
    """

    __slots__ = ("_information", "_moment", "_stale", "_theta", "forgetting")

    def __init__(self, features: int, forgetting: float = FORGETTING) -> None:
        self.forgetting = forgetting
        self._information = [[RIDGE if row == column else 0.0 for column in range(features)] for row in range(features)]
        self._moment = [0.0] * features
        self._theta = [0.0] * features
        self._stale = False

    @property
    def theta(self) -> list[float]:
        """The coefficients, each at least 0."""
        if self._stale:
            self._theta = _solved_non_negative(self._information, self._moment)
            self._stale = False
        return self._theta

    def predict(self, x: Sequence[float]) -> float:
        """What the coefficients of now give for `x`."""
        predicted: float = sum(map(mul, self.theta, x))
        return predicted

    def learn(self, x: Sequence[float], y: float) -> None:
        """One more sample counts, and older ones like it a little less."""
        information, moment, dimensions = self._information, self._moment, range(len(x))
        along = [sum(row[each] * x[each] for each in dimensions) for row in information]
        share = (1 - self.forgetting) / max(1e-12, sum(along[each] * x[each] for each in dimensions))
        known = share * sum(moment[each] * x[each] for each in dimensions)
        for row in dimensions:
            for column in dimensions:
                information[row][column] += x[row] * x[column] - share * along[row] * along[column]
            moment[row] += x[row] * y - known * along[row]
        self._stale = True


def _solved_non_negative(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """The solution; while some coefficient is below 0, that one is held at 0 and the rest is solved anew."""
    free = list(range(len(right)))
    while free:
        found = _solved([[matrix[row][column] for column in free] for row in free], [right[row] for row in free])
        worst = min(range(len(free)), key=found.__getitem__)
        if found[worst] >= 0:
            values = dict(zip(free, found, strict=True))
            return [values.get(each, 0.0) for each in range(len(right))]
        free.pop(worst)
    return [0.0] * len(right)


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination without pivoting: the matrix is positive definite."""
    size = len(right)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = matrix[row][pivot] / max(1e-12, matrix[pivot][pivot])
            right[row] -= factor * right[pivot]
            for column in range(pivot, size):
                matrix[row][column] -= factor * matrix[pivot][column]
    for row in reversed(range(size)):
        known = sum(matrix[row][column] * right[column] for column in range(row + 1, size))
        right[row] = (right[row] - known) / max(1e-12, matrix[row][row])
    return right


class Gate:
    """Whether a model may be used: the errors of its last predictions, each made before its sample was learnt."""

    __slots__ = ("_least", "_pairs", "_since", "_warming", "mape", "r2", "trusted")

    def __init__(self, least: int) -> None:
        self._pairs: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        self._least = least
        self._since = 0
        self._warming = WARM_UP
        self.mape: float | None = None  # None before there are enough samples
        self.r2 = 0.0
        self.trusted = False

    def add(self, predicted: float, actual: float) -> None:
        """One more prediction and what came; the verdict is renewed now and then."""
        self._since += 1
        if self._warming:
            self._warming -= 1
            return
        self._pairs.append((predicted, actual))
        if self._since >= JUDGED_EVERY and len(self._pairs) >= self._least:
            self._since = 0
            self._judge()

    def _judge(self) -> None:
        pairs = sorted(self._pairs, key=lambda pair: abs(pair[1] - pair[0]))
        self.mape = sum(abs(actual - predicted) / actual for predicted, actual in pairs) / len(pairs)
        del pairs[int((1 - OUTLIERS) * len(pairs)) :]
        mean = sum(actual for _, actual in pairs) / len(pairs)
        spread = sum((actual - mean) ** 2 for _, actual in pairs)
        spread = max(spread, len(pairs) * (SPREAD_LEAST * mean) ** 2)
        errors = sum((actual - predicted) ** 2 for predicted, actual in pairs)
        self.r2 = 1 - errors / spread if spread else 0.0
        self.trusted = self.mape < MAPE_MAX and self.r2 > R2_MIN

    def why_not(self) -> str:
        """Why it may not be used; "" if it may."""
        if self.trusted:
            return ""
        if self.mape is None:
            return f"{len(self._pairs)} of {self._least} samples"
        if self.mape >= MAPE_MAX:
            return f"error {self.mape:.1%}, at most {MAPE_MAX:.0%} is good enough"
        return f"R² {self.r2:.2f}, more than {R2_MIN} is good enough"


@dataclass(slots=True)
class DecodingRows:
    """Who decodes on an engine now, as far as we are told. Context in tokens, prompt and output."""

    rows: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    context: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    changed_s: float = 0.0  # when a row last came or went, or a prompt was done
    prefilling: dict[str, float] = field(default_factory=dict)  # whose prompt is not computed yet, dispatched when

    def totals(self) -> tuple[int, int]:
        """Rows and context of both lanes."""
        return sum(self.rows.values()), sum(self.context.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyFigures:
    """The model as it stands, for people. Coefficients in ms per iteration, row, 1,000 context tokens, prompt token."""

    iteration_ms: float
    row_ms: float
    context_1000_ms: float
    prefill_token_ms: float
    prefill_square_ms: float  # per million of P · (P/2 + C)
    mape: float | None
    r2: float
    trusted: bool
    why_not: str  # "" when trusted


class LatencyModel:
    """The iteration times of one engine."""

    __slots__ = ("_fit", "_gap_s", "_prompts", "_rows_max", "_sampled_s", "gate")

    def __init__(self) -> None:
        self._fit = Fit(5)  # in ms, of the features of `_features`
        self.gate = Gate(SAMPLES_MIN)
        self._rows_max = self._prompts = 0
        self._sampled_s = self._gap_s = 0.0

    @property
    def trusted(self) -> bool:
        """True if `iteration_s` is good enough to decide by."""
        return self.gate.trusted

    @property
    def prefill_trusted(self) -> bool:
        """True if `prefill_s` is, too."""
        return self.gate.trusted and self._prompts >= PREFILL_SAMPLES_MIN

    @property
    def rows_seen(self) -> int:
        """The most rows that a sample had."""
        return self._rows_max

    # ---- what it says ------------------------------------------------------------------------------------------------

    def iteration_s(self, rows: float, context: float) -> float:
        """Seconds of an iteration with so many rows and so much context, and no prefill."""
        return self._fit.predict(_features(rows, context, 0, 0)) / 1000

    def prefill_s(self, tokens: float, cached: float = 0.0) -> float:
        """Seconds that computing `tokens` of a prompt adds, `cached` of them being in the KV cache before."""
        features = _features(0, 0, tokens, cached)
        return self._fit.predict((0.0, *features[1:])) / 1000

    # ---- what it learns ----------------------------------------------------------------------------------------------

    def observe(
        self,
        gap_s: float,
        batch: DecodingRows,
        now_s: float,
        *,
        computed: str = "",
        tokens: int = 0,
        cached: int = 0,
        is_chunk: bool = False,
    ) -> None:
        """Learn from an iteration that ended now or in the last tick, if it is known what was in it.

        One and the same batch must have decoded through it, beside no prompt, or beside one that is done now: `tokens`
        of what is `computed`, behind `cached` ones, all of them in this iteration.
        """
        rows, context = batch.totals()
        again = now_s - self._sampled_s < gap_s / 2  # the same iteration, told in two ticks
        if again or not rows or batch.changed_s > now_s - gap_s * (1 - CHANGE_SLACK):
            return
        before_s = self._gap_s if is_chunk else self.iteration_s(rows, context)
        self._gap_s = gap_s
        begun_s = now_s - gap_s - JOIN_S
        if any(since_s < begun_s for name, since_s in batch.prefilling.items() if name != computed):
            return
        if computed and now_s - batch.prefilling.get(computed, -inf) > gap_s + before_s + TICK_S:
            return  # it took several iterations, in chunks
        self._sampled_s = now_s
        x = _features(rows, context, tokens, cached)
        predicted_ms, gap_ms = self._fit.predict(x), gap_s * 1000
        self.gate.add(predicted_ms, gap_ms)
        if self.trusted:  # somebody else's prompt, a hiccup: what the model cannot know must not turn it over
            gap_ms = min(max(gap_ms, (1 - SURPRISE) * predicted_ms), (1 + SURPRISE) * predicted_ms)
        self._fit.learn(x, gap_ms)
        self._rows_max = max(self._rows_max, rows)
        self._prompts += tokens > 1

    def figures(self) -> LatencyFigures:
        """As it stands."""
        coefficients = self._fit.theta
        few = "" if self._prompts >= PREFILL_SAMPLES_MIN else f"{self._prompts} of {PREFILL_SAMPLES_MIN} prompts"
        return LatencyFigures(
            iteration_ms=coefficients[0],
            row_ms=coefficients[1] / 10,
            context_1000_ms=coefficients[2] / 10,
            prefill_token_ms=coefficients[3] / 100,
            prefill_square_ms=coefficients[4] * 10,
            mape=self.gate.mape,
            r2=self.gate.r2,
            trusted=self.trusted,
            why_not=self.gate.why_not() or few,
        )


def _features(rows: float, context: float, tokens: float, cached: float) -> tuple[float, float, float, float, float]:
    """What an iteration depends on, in units of about 1."""
    return 1.0, rows / 10, context / 10_000, tokens / 100, tokens * (tokens / 2 + cached) / 100_000
