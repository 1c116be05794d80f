"""What offline costs online on one engine: a clock that runs at offline's share of each iteration.

While an iteration takes T(all) instead of T(online alone), offline's share of that time is 1 − T(alone) / T(all). The
clock adds up this share; what an online request took minus what the clock advanced meanwhile is what it would have
taken alone. So an error of the model by a tenth is an error of the price by a tenth, and neither the engine's chunks
nor its queue need be known. Before anything else an arrival on an engine that only offline keeps busy waits for half an
iteration; and where it waited for a slot, it waited for whoever held the slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from sidecar.core.iteration_model import IterationFigures, IterationModel
from sidecar.core.price import PROMPT_TOKENS, Price, Resident
from sidecar.core.request import OFFLINE, ONLINE, Lane
from sidecar.core.settings import SchedulerSettings
from sidecar.core.tracked_request import TrackedRequest

ADDED_MOST = 0.8  # of what a request took: of a prompt some time is always its own
CHANGE_SLACK = 0.25  # of a gap: what changed before it is what its iteration began with
JOIN_S = 0.002  # a dispatch that answers the end of an iteration is too late for the next, which has begun
TICK_S = 0.010  # tokens are told at most so long after they came


@dataclass(slots=True)
class DecodingRows:
    """Who decodes on an engine now, as far as we are told. Context in tokens, prompt and output."""

    rows: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    context: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    prompt_tokens: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))  # not computed yet
    changed_s: float = 0.0  # when a row last came or went, or a prompt was done
    prefilling: dict[str, float] = field(default_factory=dict)  # whose prompt is not computed yet, dispatched when

    def resident(self) -> Resident:
        """The same as the price wants to know it."""
        return Resident(
            online_rows=self.rows[ONLINE],
            online_context=self.context[ONLINE],
            offline_rows=self.rows[OFFLINE],
            offline_context=self.context[OFFLINE],
            prompt_tokens=self.prompt_tokens[ONLINE],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionFigures:
    """What is known about one engine, for gauges and people."""

    iteration: IterationFigures
    kappa: float  # seconds of offline work that one second of waiting for a first token is worth
    gap_scale: float  # times `itl_added`: by how much an iteration may be longer than alone
    ttft_share: float  # by which offline made first tokens later, mean over requests
    itl_share: float  # by which offline made gaps between tokens longer, mean over tokens
    attributed: int  # online requests with an account
    alone_ms: float  # mean of what they would have taken alone, from dispatch to end
    added_ms: float  # mean of what they took beyond it
    online_late: int  # online requests whose first token missed its objective


class Attribution:
    """One engine's iteration model, its price, and the accounts of its online requests."""

    def __init__(self, scheduler: SchedulerSettings) -> None:
        self._ttft_s = scheduler.ttft_objective_ms / 1000
        self.batch = DecodingRows()
        self.model = IterationModel()
        self.price = Price(self.model, ttft_added=scheduler.ttft_added, itl_added=scheduler.itl_added)
        self._added_s = self._share = self._at_s = 0.0  # the clock, how fast it runs, and when it was read
        self._joins_s = 0.0  # when an arrival that nobody online was there before joins the batch: the clock stands
        self._busy_at_s = 0.0  # what the clock said when the first of the online prompts under way came
        # How long online would have decoded alone while none of its prompts was computed, and what offline added:
        # whoever decodes for longer meets as many more prompts of others, so that the first is what counts.
        self._decode_alone_s = self._decode_added_s = 0.0
        self._gap_s, self._gap_at_s = 0.0, -inf
        self._learnt_s = self._previous_gap_s = 0.0  # the last sample: when, and its gap
        self._attributed = self._late = 0
        self._alone_s = self._more_s = 0.0

    # ---- the clock ---------------------------------------------------------------------------------------------------

    def _advance(self, now_s: float) -> float:
        """Bring the clock up to now; what it says."""
        passed_s = max(0.0, now_s - max(self._at_s, self._joins_s))
        self._added_s += self._share * passed_s
        if self.batch.rows[ONLINE]:
            self._decode_added_s += self._share * passed_s
            if not self.batch.prompt_tokens[ONLINE]:
                self._decode_alone_s += (1 - self._share) * passed_s
        self._at_s = now_s
        return self._added_s

    def _changed(self, now_s: float) -> None:
        """Another batch: the clock runs at another pace."""
        self._advance(now_s)
        batch, model = self.batch, self.model
        prompt = min(batch.prompt_tokens[ONLINE], PROMPT_TOKENS)
        alone = batch.rows[ONLINE] + prompt
        more = self._offline_tokens
        if not alone or not more or not model.trusted:
            self._share = 0.0
            return
        both_s = model.iteration_s(alone + more, batch.context[ONLINE] + batch.context[OFFLINE])
        self._share = max(0.0, 1 - model.iteration_s(alone, batch.context[ONLINE]) / both_s)

    @property
    def _offline_tokens(self) -> int:
        """What offline has in each iteration: its rows, and of the chunks under way the one that is computed."""
        return self.batch.rows[OFFLINE] + min(self.batch.prompt_tokens[OFFLINE], self.price.chunk_tokens)

    def _residual_s(self) -> float:
        """How much longer an arrival waits on average for the iteration under way, because offline is in it."""
        batch, model = self.batch, self.model
        more, rows = self._offline_tokens, batch.rows[ONLINE]
        if not more:
            return 0.0
        alone_s = model.iteration_s(rows, batch.context[ONLINE]) if rows else 0.0
        return max(0.0, model.iteration_s(rows + more, batch.context[ONLINE] + batch.context[OFFLINE]) - alone_s) / 2

    # ---- one request, from its slot to its end -----------------------------------------------------------------------

    def began(self, tracked: TrackedRequest, now_s: float, offline_share: float) -> None:
        """`tracked` was dispatched, and stands in the ledger. Offline held such a share of the slots until then."""
        lane = tracked.request.lane
        tracked.begun_s = now_s
        tracked.added_at_s = self._advance(now_s)
        if lane is ONLINE:
            if not self.batch.prompt_tokens[ONLINE]:
                residual_s = self._residual_s()
                self._busy_at_s = tracked.added_at_s - residual_s
                if not self.batch.rows[ONLINE]:
                    self._joins_s = now_s + residual_s  # what offline is told to stop now is not there any more then
            tracked.added_at_s = self._busy_at_s  # prompts are computed in order: whoever is behind one waits for it
            tracked.queued_added_s = (now_s - tracked.request.arrived_s) * offline_share
        self.batch.prefilling[tracked.request.id] = now_s
        tracked.uncomputed_tokens = tracked.prefill_tokens
        self.batch.prompt_tokens[lane] += tracked.uncomputed_tokens
        self._changed(now_s)

    def streamed(self, gaps_s: tuple[float, ...], begun: list[TrackedRequest], now_s: float) -> None:
        """A tick: the gaps between tokens, and `begun`, which gave their first token in it."""
        batch = self.batch
        if gaps_s:
            self._gap_s, self._gap_at_s = max(gaps_s), now_s
        if gaps_s and not begun:
            self._learn(sorted(gaps_s)[len(gaps_s) // 2], now_s)
        elif gaps_s and len(begun) == 1:
            self._computed(begun[0], now_s)
        for tracked in begun:
            if tracked.decoding:
                continue
            tracked.decoding = True
            lane = tracked.request.lane
            batch.prefilling.pop(tracked.request.id, None)
            self._prompt_done(tracked)
            batch.rows[lane] += tracked.request.slots
            batch.context[lane] += tracked.context_tokens
            batch.changed_s = now_s
            if lane is ONLINE and not tracked.first_token_s:
                self._first_token(tracked, now_s)
            tracked.first_token_s = tracked.first_token_s or now_s
        self._changed(now_s)

    def _prompt_done(self, tracked: TrackedRequest) -> None:
        self.batch.prompt_tokens[tracked.request.lane] -= tracked.uncomputed_tokens
        tracked.uncomputed_tokens = 0

    def _first_token(self, tracked: TrackedRequest, now_s: float) -> None:
        clock_s = self._advance(now_s)
        took_s, added_s = now_s - tracked.request.arrived_s, clock_s - tracked.added_at_s + tracked.queued_added_s
        tracked.decode_at_s, tracked.decode_added_at_s = self._decode_alone_s, self._decode_added_s
        added_s = min(added_s, ADDED_MOST * took_s)
        if self.model.trusted:
            self.price.waited(took_s - added_s, added_s, tracked.request.ttft_objective_ms / 1000)

    def _computed(self, tracked: TrackedRequest, now_s: float) -> None:
        """A prompt, or a chunk of one, is done: if it was alone in its iteration, that shows its price."""
        if now_s - self._gap_at_s < self._gap_s / 2 and not tracked.decoding and not tracked.interrupted_mid_prompt:
            self._learn(self._gap_s, now_s, computed=tracked)

    def _learn(self, gap_s: float, now_s: float, computed: TrackedRequest | None = None) -> None:
        """Learn from an iteration that ended now or in the last tick, if it is known what was in it.

        One and the same batch must have decoded through it, beside no prompt, or beside one that is done now, all of
        which was in this iteration.
        """
        batch, begun_s = self.batch, now_s - gap_s - JOIN_S
        rows, context = sum(batch.rows.values()), sum(batch.context.values())
        again = now_s - self._learnt_s < gap_s / 2  # the same iteration, told in two ticks
        if again or not rows or batch.changed_s > now_s - gap_s * (1 - CHANGE_SLACK):
            return
        name = computed.request.id if computed else ""
        if any(since_s < begun_s for each, since_s in batch.prefilling.items() if each != name):
            return
        tokens = computed.prefill_tokens if computed else 0
        before_s = self._previous_gap_s
        self._previous_gap_s = gap_s
        if computed and now_s - batch.prefilling.get(name, -inf) > gap_s + before_s + TICK_S:
            return  # it took several iterations, in chunks
        self._learnt_s = now_s
        if rows + tokens <= PROMPT_TOKENS:  # of a longer prompt nobody knows how much was in it
            self.model.observe(gap_s, rows + tokens, context, now_s)

    def left(self, tracked: TrackedRequest, now_s: float) -> None:
        """The dispatch of `tracked` is over."""
        batch, lane = self.batch, tracked.request.lane
        batch.context[lane] -= tracked.streamed_tokens
        if tracked.decoding:
            batch.rows[lane] -= tracked.request.slots
            batch.context[lane] -= tracked.context_tokens
        else:
            if tracked.fills_cache:
                self._computed(tracked, now_s)
            tracked.interrupted_mid_prompt = not tracked.fills_cache
            batch.prefilling.pop(tracked.request.id, None)
            self._prompt_done(tracked)
        tracked.decoding = False
        batch.changed_s = now_s
        self._changed(now_s)

    def alone_s(self, tracked: TrackedRequest, now_s: float) -> float | None:
        """What it would have taken without offline, from its dispatch until now; None without a trusted model."""
        if not self.model.trusted:
            return None
        return max(0.0, now_s - tracked.begun_s - (self._advance(now_s) - tracked.added_at_s))

    def complete(self, tracked: TrackedRequest, now_s: float) -> None:
        """An online request is complete, and has not left yet: its account."""
        alone_s = self.alone_s(tracked, now_s)
        if alone_s is not None:
            self._attributed += 1
            self._alone_s += alone_s
            self._more_s += now_s - tracked.begun_s - alone_s
            if tracked.first_token_s:
                added_s = self._decode_added_s - tracked.decode_added_at_s
                self.price.decoded(self._decode_alone_s - tracked.decode_at_s, added_s)
        ttft_s = (tracked.first_token_s or now_s) - tracked.request.arrived_s
        self._late += ttft_s > (tracked.request.ttft_objective_ms / 1000 or self._ttft_s)

    def figures(self) -> AttributionFigures:
        """As it stands."""
        return AttributionFigures(
            iteration=self.model.figures(),
            kappa=self.price.kappa,
            gap_scale=self.price.gap_scale,
            ttft_share=self.price.ttft_share,
            itl_share=self.price.itl_share,
            attributed=self._attributed,
            alone_ms=1000 * self._alone_s / self._attributed if self._attributed else 0.0,
            added_ms=1000 * self._more_s / self._attributed if self._attributed else 0.0,
            online_late=self._late,
        )
