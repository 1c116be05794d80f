"""What offline may have of each iteration, at the price that the operator states.

`ttft_added` says by which share offline may lengthen the wait for the first token, `itl_added` the gaps between
tokens. Both are one budget: where online is so rarely resident that its gaps have little to give, what they leave
passes to the wait for first tokens (`gap_weight`). The learnt iteration model T says what each token costs. Three
states of an engine:

- Online only decodes: its gap may grow from T(alone) to (1 + gap share) · T(alone), where that is worth what it costs
  at κ (see below). Rows come first, chunks of prompts fill what they leave.
- An online prompt is computed: no chunk, and of the rows so many as hardly lengthen its iterations.
- No online request is there: an arrival will wait for half an iteration, so offline costs λ·L/2 per second, and gives
  n/T(n) tokens per second, of which the best possible ones are worth 1. With κ, what one second of waiting is worth in
  seconds of offline work, the best number of tokens maximises n/T(n) · v − κ·λ·T(n)/2 (for an additive T: iterations
  of √(2·o/(κ·λ))). If none is worth it, offline pauses until the rate has decayed.

κ and the gap share are moved by what offline is found to have added, request by request, so that the mean meets what
was stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log

from sidecar.core.arrivals import FAST_S
from sidecar.core.iteration_model import BIN_TOKENS, IterationModel

CHUNK_MIN = 32  # tokens of a prompt: fewer per dispatch are not worth a call
CHUNK_UNKNOWN = 64  # without a trusted model: flat on every card measured
KAPPA_FIRST, KAPPA_MIN, KAPPA_MAX = 20.0, 0.02, 2000.0
SCALE_MIN, SCALE_MAX = 0.2, 2.0  # of the share that the gap may grow by
# One more request moves the logarithm of κ by 1 / SETTLE of its error and less with each, down to what a mean over
# SETTLE_S asks for: bursts and lulls share one κ, or nothing would be gained by their difference.
SETTLE, SETTLE_S = 20, 600.0
AIM = 0.95  # of what is stated: a bound is not met by half of its means
GAP_GAIN = 0.02  # the same of the gap share, which follows a mean
MOST = 2.0  # times what is stated: one request counts at most so much
FIRST = 10  # requests, after which the measured price moves κ: until then, or until so many are complete, it is guessed
RESIDENT_FEW, RESIDENT_MANY = 0.2, 0.4  # online requests at a time: below gaps keep none of their budget, above all
BESIDE_PROMPT = 0.25  # of `ttft_added`: by how much rows may lengthen the iterations of an online prompt
PROMPT_TOKENS = 512  # an iteration computes at most about so much of an online prompt
COST_STEPS, CONTEXT_STEP = 20, 4096  # how finely the best iteration is looked for: 5 % of a cost, so much context
ROWS_SHARE = 0.25  # about so many of offline's tokens are rows, which have a context; the others are of prompts
BESIDE_MIN = 4  # tokens: fewer are not worth their stops and resumes
PAUSE_MIN_S = 0.1  # a pause ends a little after the rate has decayed so far: at that very moment rounding decides
WEIGHT = 0.02  # of one more request in the means


@dataclass(frozen=True, slots=True)
class Room:
    """What offline may have now."""

    rows: float  # decoding, at most
    chunk_tokens: int  # of prompts, per iteration
    until_s: float = inf  # when time alone may change it


NO_ROOM = Room(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Who decodes on an engine, and what of online prompts waits or is computed."""

    online_rows: int
    online_context: float
    offline_rows: int
    offline_context: float
    prompt_tokens: int  # of online prompts, not computed yet


class Price:
    """The price of one engine: what is stated, what was found, and what follows."""

    __slots__ = (
        *("_asked", "_best", "_decoded", "_decoded_alone_s", "_decoded_more_s", "_first_alone_s", "_itl_added"),
        *("_model", "_requests", "_row_context", "_ttft_added", "chunk_tokens", "gap_scale", "kappa", "mean_per_s"),
        *("recent_s", "ttft_share"),
    )

    def __init__(self, model: IterationModel, *, ttft_added: float, itl_added: float) -> None:
        self._model = model
        self._ttft_added, self._itl_added = ttft_added, itl_added
        self.chunk_tokens = CHUNK_MIN  # per iteration, when there was last room for one
        self.kappa = KAPPA_FIRST
        self.gap_scale = 1.0
        self.mean_per_s = 0.0  # online arrivals, over minutes
        self.recent_s = FAST_S  # over which their recent rate fades
        self._requests = 0
        self._row_context = 0.0  # tokens of context of an offline row, when there was last one
        self.ttft_share = 0.0  # by which first tokens came later, mean
        self._first_alone_s = 0.0  # that first tokens take alone: mean
        self._decoded = 0
        self._asked: tuple[float, ...] = ()
        self._best = (0, 0.0)  # what follows from `_asked`
        self._decoded_alone_s = self._decoded_more_s = 0.0  # the same of decoding, and what offline added: means

    @property
    def itl_share(self) -> float:
        """By which the gaps between tokens were longer, mean over tokens."""
        return self._decoded_more_s / self._decoded_alone_s if self._decoded_alone_s else 0.0

    @property
    def resident(self) -> float:
        """Online requests that would be there at a time without offline (Little's law)."""
        return self.mean_per_s * (self._first_alone_s + self._decoded_alone_s)

    @property
    def gap_weight(self) -> float:
        """How much of their budget the gaps keep; the rest passes to first tokens."""
        return min(1.0, max(0.0, (self.resident - RESIDENT_FEW) / (RESIDENT_MANY - RESIDENT_FEW)))

    # ---- what follows ------------------------------------------------------------------------------------------------

    def room(self, resident: Resident, steady_tokens: float, rate_per_s: float, now_s: float) -> Room:
        """What offline may have beside `resident`, while online requests arrive at such a rate.

        More than `steady_tokens` in each iteration offline would not have for long.
        """
        if resident.offline_rows:
            self._row_context = resident.offline_context / resident.offline_rows
        room = self._room(resident, steady_tokens, rate_per_s, now_s)
        if room.chunk_tokens:
            self.chunk_tokens = max(CHUNK_MIN, room.chunk_tokens)
        return room

    def _room(self, resident: Resident, steady_tokens: float, rate_per_s: float, now_s: float) -> Room:
        online = resident.online_rows > 0 or resident.prompt_tokens > 0
        if not self._model.trusted:
            return NO_ROOM if online else Room(inf, CHUNK_UNKNOWN)
        if not online:
            return self._alone_room(resident, steady_tokens, rate_per_s, now_s)
        if not self.gap_weight:
            return NO_ROOM
        if resident.prompt_tokens:
            return Room(self._rows_beside_prompt(resident, steady_tokens), 0)
        rows = self._rows_beside(resident, steady_tokens)
        return Room(rows, max(0, rows - resident.offline_rows))

    def gap_s(self, resident: Resident) -> float:
        """How long an iteration may take beside online requests that decode."""
        base_s = self._model.iteration_s(max(1, resident.online_rows), resident.online_context)
        return base_s * (1 + self._itl_added * self.gap_weight * self.gap_scale)

    def _within(self, seconds: float, resident: Resident, prompt_tokens: int = 0) -> int:
        """Offline tokens with which an iteration takes no longer."""
        tokens = self._model.tokens_within(seconds, resident.online_context + resident.offline_context)
        return max(0, tokens - resident.online_rows - prompt_tokens)

    def _rows_beside(self, resident: Resident, steady_tokens: float) -> int:
        """Offline tokens that the gap allows, or the half of them, if that is worth at κ what it costs online."""
        rows = self._within(self.gap_s(resident), resident)
        while rows >= BESIDE_MIN and not self._is_worth(rows, resident, steady_tokens):
            rows //= 2
        return rows if rows >= BESIDE_MIN else 0

    def _is_worth(self, rows: int, resident: Resident, steady_tokens: float) -> bool:
        """True if what so many tokens give is more than κ times what they make each online request wait."""
        model, online = self._model, max(1, resident.online_rows)
        most = min(model.tokens_max, max(steady_tokens, CHUNK_MIN))
        worth_s = rows * model.iteration_s(most) / most
        context = max(resident.offline_context, ROWS_SHARE * rows * self._row_context)
        longer_s = model.iteration_s(online + rows, context) - model.iteration_s(online)
        return worth_s >= self.kappa * online * longer_s

    def _rows_beside_prompt(self, resident: Resident, steady_tokens: float) -> int:
        """The rows that may stay beside decoding requests, as far as they hardly lengthen the iterations of a
        prompt."""
        prompt = min(resident.prompt_tokens, PROMPT_TOKENS)
        alone_s = self._model.iteration_s(prompt + resident.online_rows, resident.online_context)
        within_s = alone_s * (1 + BESIDE_PROMPT * self._ttft_added)
        return min(self._rows_beside(resident, steady_tokens), self._within(within_s, resident, prompt))

    def _alone_room(self, resident: Resident, steady_tokens: float, rate_per_s: float, now_s: float) -> Room:
        cost = self.kappa * rate_per_s / 2
        asked = (
            *(self._model.renewals, int(steady_tokens / BIN_TOKENS), int(resident.offline_context / CONTEXT_STEP)),
            round(COST_STEPS * log(cost)) if cost > 0 else -inf,
        )
        if asked != self._asked:  # most looks ask what the last one did
            self._asked, self._best = asked, self._best_alone(resident, steady_tokens, cost)
        tokens, bearable = self._best
        if cost >= bearable:
            return Room(0, 0, now_s + max(PAUSE_MIN_S, self.recent_s * log(cost / bearable)))
        return Room(tokens, max(CHUNK_MIN, tokens - resident.offline_rows))

    def _best_alone(self, resident: Resident, steady_tokens: float, cost: float) -> tuple[int, float]:
        """The best number of tokens of an iteration while nobody online is there, and above which cost none is."""
        model = self._model
        sizes = range(BIN_TOKENS, int(min(model.tokens_max, max(steady_tokens, CHUNK_MIN))) + 1, BIN_TOKENS)
        times = [(each, model.iteration_s(each, resident.offline_context)) for each in sizes]
        worth = min(time_s / each for each, time_s in times)
        _, tokens = max((worth * each / time_s - cost * time_s, each) for each, time_s in times)
        return tokens, max(worth * each / (time_s * time_s) for each, time_s in times)

    # ---- what was found ----------------------------------------------------------------------------------------------

    def waited(self, alone_s: float, added_s: float, objective_s: float) -> None:
        """An online request got its first token after `alone_s` + `added_s`; `objective_s` is its own one, or 0."""
        self._requests += 1
        weight = max(WEIGHT, 1 / self._requests)
        self._first_alone_s += weight * (alone_s - self._first_alone_s)
        self.ttft_share += weight * (added_s / max(alone_s, 1e-6) - self.ttft_share)
        allowed_s = self._ttft_added * alone_s + self._passed_on_s()
        if objective_s:
            allowed_s = max(objective_s - alone_s, 0.01 * alone_s)
        if self._requests < FIRST * (1 + max(0, FIRST - self._decoded)) and not objective_s:
            self._estimate(allowed_s)
            return
        error = added_s / (AIM * allowed_s) - 1 if allowed_s > 0 else MOST
        gain = max(1 / (SETTLE + self._requests), 1 / (1 + SETTLE_S * self.mean_per_s))
        self.kappa = min(max(self.kappa * exp(gain * min(error, MOST)), KAPPA_MIN), KAPPA_MAX)

    def _passed_on_s(self) -> float:
        """Seconds per request that the gaps leave to first tokens of their budget; negative if they took more."""
        budget_s, kept = self._itl_added * self._decoded_alone_s, self.gap_weight
        return (1 - kept) * budget_s - max(0.0, self._decoded_more_s - kept * budget_s)

    def _estimate(self, allowed_s: float) -> None:
        """Set κ so that half an iteration is what an arrival may wait, if nobody is there."""
        base_s, rate_per_s = self._model.iteration_s(1), self.mean_per_s
        if base_s > 0 and rate_per_s > 0 and allowed_s > 0:
            often = exp(min(max(0.0, self.resident - 1), 3.0))  # so much more rarely nobody is there
            iteration_s = 2 * max(allowed_s, base_s) * often
            self.kappa = min(max(base_s / (rate_per_s * iteration_s**2), KAPPA_MIN), KAPPA_MAX)

    def decoded(self, alone_s: float, added_s: float) -> None:
        """An online request decoded for `alone_s` + `added_s` from its first token to its last."""
        if alone_s <= 0:
            return
        self._decoded += 1
        weight = max(WEIGHT, 1 / self._decoded)
        self._decoded_alone_s += weight * (alone_s - self._decoded_alone_s)
        self._decoded_more_s += weight * (added_s - self._decoded_more_s)
        allowed = self._itl_added * self.gap_weight
        error = self.itl_share / (AIM * allowed) - 1 if allowed > 0 else MOST
        self.gap_scale = min(max(self.gap_scale * exp(-GAP_GAIN * min(error, MOST)), SCALE_MIN), SCALE_MAX)
