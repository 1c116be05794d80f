"""How long an iteration of the engine takes, learnt from the gaps between tokens; nothing is set by hand.

    T = f(rows + prompt tokens in the iteration) + c · context tokens

Reading the weights costs the same for one token as for sixty-four, so f is flat at first, and then climbs in steps at
the tile boundaries of the GPU's kernels. No formula is fitted to it: f is one running mean per BIN_TOKENS tokens, made
monotone (pool adjacent violators). c is what context explains inside the bins. A gap between two tokens of one stream
is one iteration. The model is trusted while the sums of some gaps are predicted well before they are learnt; beyond
what was seen nothing is promised.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

BIN_TOKENS = 8  # steps of measured curves lie at multiples of 16 and more
BINS = 256  # 2,048 tokens: what is above counts with the last bin
MEMORY = 50  # samples that a bin remembers
REACH = 1.25  # times the most tokens seen: beyond it nothing is allowed
SAMPLES_MIN = 64  # before there is a verdict
GROUP = 8  # gaps whose sum is judged: jitter of single deliveries cancels out in it
GROUPS = 32  # the last ones, of which the median counts
ERROR_MAX = 0.10
POINTS = 32  # of the curve, in figures
SURPRISE = 0.25  # of a prediction: a trusted model learns at most so much of an error
RENEWED_EVERY = 16  # samples: the curve is not smoothed for each
FEWER_MIN = 0.1  # of the fewest tokens seen: an iteration with fewer takes at least so much of their time
FADING = 0.999  # of what is known about context, per sample


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationFigures:
    """The model as it stands, for people."""

    iteration_ms: float  # of one row without context
    token_ms: float  # that one more token costs, on average over what was seen
    context_1000_ms: float
    tokens_seen: int  # the most in one iteration
    points: tuple[tuple[int, float], ...]  # the curve: tokens of an iteration, and its milliseconds without context
    error: float | None  # median over the last groups of gaps; None before there are some
    trusted: bool
    trusted_since_s: float | None


class IterationModel:
    """The iteration times of one engine."""

    __slots__ = (
        *("_context", "_counts", "_covariance", "_curve", "_errors", "_group", "_highest", "_means", "_since"),
        *("_variance", "context_s", "renewals", "samples", "trusted", "trusted_since_s"),
    )

    def __init__(self) -> None:
        self._counts = [0.0] * BINS
        self._means = [0.0] * BINS  # seconds, per bin
        self._context = [0.0] * BINS  # tokens of context, per bin
        self._covariance = self._variance = 0.0  # inside the bins, of context and seconds, and of context
        self._curve: list[float] = []  # f at each bin up to the highest seen
        self._highest = -1
        self._group = (0, 0.0, 0.0)  # how many gaps, what was predicted, what came
        self._errors: deque[float] = deque(maxlen=GROUPS)
        self._since = 0
        self.context_s = 0.0  # seconds that one token of context costs
        self.renewals = 0  # of the curve
        self.samples = 0
        self.trusted = False
        self.trusted_since_s: float | None = None

    @property
    def tokens_max(self) -> int:
        """The most tokens of one iteration about which anything is known."""
        return int(REACH * (self._highest + 1) * BIN_TOKENS)

    def iteration_s(self, tokens: float, context: float = 0.0) -> float:
        """Seconds of an iteration that computes so many tokens, rows and prompts alike; 0 before anything is known."""
        if not self._curve:
            return 0.0
        return self._curve_s(tokens) + self.context_s * context

    def tokens_within(self, seconds: float, context: float) -> int:
        """The most tokens that an iteration of at most `seconds` computes."""
        low, high = 0, self.tokens_max + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.iteration_s(middle, context) <= seconds:
                low = middle
            else:
                high = middle
        return low

    def observe(self, gap_s: float, tokens: int, context: float, now_s: float) -> None:
        """Learn from one iteration."""
        bin_ = min((tokens - 1) // BIN_TOKENS, BINS - 1)
        if self._curve:
            predicted_s = self.iteration_s(tokens, context)
            self._judge(predicted_s, gap_s, now_s)
            if self.trusted:  # somebody else's prompt, a hiccup: what the model cannot know must not turn it over
                gap_s = min(max(gap_s, (1 - SURPRISE) * predicted_s), (1 + SURPRISE) * predicted_s)
        count = self._counts[bin_] = min(self._counts[bin_] + 1, MEMORY)
        more_s, more = gap_s - self._means[bin_], context - self._context[bin_]
        self._means[bin_] += more_s / count
        self._context[bin_] += more / count
        if count > 1:
            self._covariance = FADING * self._covariance + more * more_s * (1 - 1 / count)
            self._variance = FADING * self._variance + more * more * (1 - 1 / count)
        self.samples += 1
        self._since += 1
        if bin_ > self._highest or self._since >= RENEWED_EVERY:
            self._highest, self._since = max(self._highest, bin_), 0
            self.context_s = max(0.0, self._covariance / self._variance) if self._variance > 0 else 0.0
            self._curve = self._smoothed()
            self.renewals += 1

    def figures(self) -> IterationFigures:
        """As it stands."""
        seen = (self._highest + 1) * BIN_TOKENS
        first_s = self.iteration_s(1)
        return IterationFigures(
            iteration_ms=1000 * first_s,
            token_ms=1000 * (self.iteration_s(seen) - first_s) / max(1, seen),
            context_1000_ms=1_000_000 * self.context_s,
            tokens_seen=seen,
            points=self._points(seen) if self._curve else (),
            error=median(self._errors) if self._errors else None,
            trusted=self.trusted,
            trusted_since_s=self.trusted_since_s,
        )

    def _points(self, seen: int) -> tuple[tuple[int, float], ...]:
        """The curve from one token to `seen`, at no more than POINTS of its bins' boundaries."""
        stride = BIN_TOKENS * (1 + seen // (POINTS * BIN_TOKENS))
        return tuple((tokens, 1000 * self.iteration_s(tokens)) for tokens in (1, *range(stride, seen, stride), seen))

    def _curve_s(self, tokens: float) -> float:
        """f, linear between the middles of two bins and below the first, and on average as steep above the highest
        seen."""
        curve, last = self._curve, len(self._curve) - 1
        at = tokens / BIN_TOKENS - 0.5
        if at <= 0:
            return max(FEWER_MIN * curve[0], curve[0] + (at * (curve[1] - curve[0]) if last else 0.0))
        if at >= last:
            return curve[last] + (at - last) * ((curve[last] - curve[0]) / last if last else 0.0)
        below = int(at)
        return curve[below] + (at - below) * (curve[below + 1] - curve[below])

    def _smoothed(self) -> list[float]:
        """Each bin's seconds without its context: monotone, and linear over bins of which nothing is known."""
        context_s = self.context_s
        known = [number for number in range(self._highest + 1) if self._counts[number]]
        pools: list[list[float]] = []  # mean, weight, bins
        for number in known:
            pools.append([max(0.0, self._means[number] - context_s * self._context[number]), self._counts[number], 1])
            while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
                mean, weight, bins = pools.pop()
                before = pools[-1]
                before[0] = (before[0] * before[1] + mean * weight) / (before[1] + weight)
                before[1] += weight
                before[2] += bins
        values = [pool[0] for pool in pools for _ in range(int(pool[2]))]
        # Below the fewest tokens seen f falls as steeply as it climbs on average. If it were flat, rows would seem free
        # there, and iterations without them would never be seen.
        slope = (values[-1] - values[0]) / max(1, known[-1] - known[0])
        curve = [max(FEWER_MIN * values[0], values[0] - slope * (known[0] - each)) for each in range(known[0])]
        for index, number in enumerate(known):
            if index:
                left = known[index - 1]
                step = (values[index] - values[index - 1]) / (number - left)
                curve += [values[index - 1] + step * (each - left) for each in range(left + 1, number)]
            curve.append(values[index])
        return curve

    def _judge(self, predicted_s: float, gap_s: float, now_s: float) -> None:
        count, predicted, actual = self._group
        self._group = (count + 1, predicted + predicted_s, actual + gap_s)
        if count + 1 < GROUP:
            return
        count, predicted, actual = self._group
        self._group = (0, 0.0, 0.0)
        self._errors.append(abs(predicted - actual) / actual)
        was, self.trusted = self.trusted, self.samples >= SAMPLES_MIN and median(self._errors) < ERROR_MAX
        if self.trusted is not was:
            self.trusted_since_s = now_s if self.trusted else None
