"""What the scheduler knows about one engine: who has its slots, and what they hold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf

from sidecar.core.arrivals import ArrivalRate, poisson_quantile, worth_waiting
from sidecar.core.attribution import Attribution
from sidecar.core.ledger import SCRAPES, Ledger
from sidecar.core.preemption import candidates, cheapest_first, is_ending, until_free
from sidecar.core.prefill_pace import PrefillPace
from sidecar.core.prefixes import Prefixes
from sidecar.core.price import CHUNK_MIN, CHUNK_UNKNOWN, NO_ROOM, PROMPT_TOKENS, Room
from sidecar.core.request import OFFLINE, ONLINE, DispatchKind, Lane, Request
from sidecar.core.reservation import Reservation
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.slices import Slices
from sidecar.core.tracked_request import TrackedRequest
from sidecar.core.window import FreeSlots

FRESH_S = 1.0  # what follows from the rate of arrivals is looked at anew after so long
STEADY_FIRST = 100  # tokens per slot: prompts are computed before their outputs are there, and weigh too much at first
WEIGHT = 0.1  # of one more sample in a running mean


class Limit(StrEnum):
    """Which rule holds offline back on an engine now."""

    NONE = "none"
    DOWN = "down"  # the engine takes no request
    NO_OFFLINE = "no offline"  # nothing offline waits
    ONLINE_WAITS = "online waits"  # what comes free is online's
    RESERVED_DISPATCH = "reserved dispatch"  # a due reserved dispatch needs more than is free
    SLOTS = "slots"
    FOREIGN = "foreign"  # load that is not ours, or a scrape that fails
    HEADROOM = "headroom"
    YIELD = "yield"  # online is resident: the rows that are set for it
    PRICE = "price"  # more would cost online more than was stated
    TENANT = "tenant"  # whoever waits has all the slots that its tenant may have
    WINDOW = "window"
    KV = "kv"
    PREFILL = "prefill"  # other offline prompts are being computed
    TOO_LARGE = "too large"  # whoever is next fits another engine of the model, and not this one


@dataclass(slots=True)
class Counts:
    """What happened on one engine since the start."""

    dispatches: dict[DispatchKind, int] = field(default_factory=lambda: dict.fromkeys(DispatchKind, 0))
    output_tokens: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))  # kept ones
    offline_prompt_tokens: int = 0  # sent to be computed
    preemptions: int = 0  # slices stopped because online lacked their slots or KV
    yields: int = 0  # slices stopped because online was resident
    resumed_tokens: int = 0  # context sent again by dispatches that went on
    recomputed_tokens: int = 0  # of it, what the engine had to compute again, as far as it told
    discarded_tokens: int = 0  # generated and thrown away


@dataclass(slots=True, eq=False)
class Engine:
    """One engine. Always: slots in use by both lanes + draining + free = slots owned."""

    settings: EngineSettings
    scheduler: SchedulerSettings
    free: FreeSlots
    reservation: Reservation
    ledger: Ledger
    slices: Slices
    pacing: PrefillPace
    attribution: Attribution
    arrivals: ArrivalRate  # of its model, shared by the model's engines
    prefixes: Prefixes = field(default_factory=Prefixes)
    counts: Counts = field(default_factory=Counts)
    up: bool = False
    in_use: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    draining: int = 0
    neighbours: list[Engine] = field(default_factory=list)  # others on the same cards: what one does all of them feel
    residents: dict[str, TrackedRequest] = field(default_factory=dict)  # offline dispatches, by request id
    stopping: int = 0  # offline dispatches being preempted
    offline_waits_since_s: float | None = None  # since its last offline dispatch, or since its offline queue filled
    starvation_gap_s: float = 0.0  # the longest such wait so far
    limit_binding: Limit = Limit.DOWN
    kv_size: tuple[float, int] = (0.0, 0)  # of the cache, in tokens, and in how many scrapes in a row it was that
    stop_s: float = 0.03  # from a stop to the free slot: running mean
    gap_s: float = 0.025  # between two tokens of a stream: running mean
    prefill_next_s: float = -inf  # when pacing allows the next chunk of an offline prompt
    fresh_until_s: float = -inf  # the next one holds until then
    headroom: int = 0  # slots kept for the next online arrivals: as set, or as many as arrive while one comes free
    room: Room = NO_ROOM  # what offline may have of an iteration, as of the last look
    iteration_s: float = 0.025  # that an iteration takes with as much of a prompt as it may hold

    @classmethod
    def of(cls, engine: EngineSettings, scheduler: SchedulerSettings, arrivals: ArrivalRate) -> Engine:
        """An engine that is down, with all its slots free."""
        return cls(
            settings=engine,
            scheduler=scheduler,
            free=FreeSlots(engine.slots),
            reservation=Reservation(scheduler.reservation_every, scheduler.reserved_saved_max),
            ledger=Ledger.of(engine, scheduler),
            slices=Slices(scheduler.slice_tokens, scheduler.slice_tokens_busy),
            pacing=PrefillPace(),
            attribution=Attribution(scheduler),
            arrivals=arrivals,
        )

    @property
    def load(self) -> float:
        """Which share of its slots is not free."""
        return 1.0 - self.free.slots / self.settings.slots

    def refuses(self, request: Request) -> str:
        """Why this engine can never run `request`, in words with both numbers; "" if it can."""
        slots_max, tokens = self.settings.slots, request.prompt_tokens + request.output_tokens_max
        if request.lane is OFFLINE:  # where all slots are headroom, a reserved dispatch still takes one
            slots_max = max(1, slots_max - self.settings.slots_online_min)
        if request.slots > slots_max:
            return f"it needs {request.slots} slots, and an engine lends at most {slots_max}"
        if tokens > self.settings.tokens_max:
            return (
                f"prompt ({request.prompt_tokens} tokens) and max_tokens ({request.output_tokens_max}) exceed"
                f" the {self.settings.tokens_max} tokens of the engine"
            )
        # One odd scrape is no reason: what is refused may be a dead letter. Until the size is known, work waits.
        settled = self.settings.kv_tokens or self.kv_size[1] >= SCRAPES
        needed = self.ledger.need(tokens) * request.slots  # each sequence takes whole blocks
        if settled and needed > self.ledger.kv_tokens_max:
            return f"it needs {needed} tokens of KV cache, and the engine has {self.ledger.kv_tokens_max:.0f}"
        return ""

    @property
    def online_slots(self) -> int:
        """Slots in which online work runs, here and on the engines beside it on the same cards."""
        slots = self.in_use[ONLINE]
        for each in self.neighbours:
            slots += each.in_use[ONLINE]
        return slots

    # ---- what fits --------------------------------------------------------------------------------------------------

    def fits(self, tracked: TrackedRequest) -> bool:
        """True if there are slots and KV for `tracked`, whatever else holds."""
        if tracked.request.slots > self.free.slots:
            return False
        ledger = self.ledger
        return ledger.kv_tokens_free == inf or self.kv_need(tracked) <= ledger.kv_tokens_free

    def note_kv_size(self) -> bool:
        """Count one more scrape. Return True if the cache has a new size, and this is the third scrape to say so."""
        size, scrapes = self.kv_size
        self.kv_size = (size, scrapes + 1) if size == self.ledger.kv_tokens_max else (self.ledger.kv_tokens_max, 1)
        return self.kv_size[1] == SCRAPES

    def could_fit(self, tracked: TrackedRequest) -> bool:
        """True if there would be KV for `tracked` with nothing of ours in it: no reserved dispatch waits for what
        others hold."""
        ledger = self.ledger
        return ledger.kv_tokens_max == inf or self.kv_need(tracked) <= ledger.kv_tokens_max - ledger.foreign_kv_tokens

    @property
    def takes_long(self) -> bool:
        """True if a long prompt may start: an engine computes prompts in order, so that one holds up all behind it."""
        return not self.ledger.long_prefills

    def kv_need(self, tracked: TrackedRequest) -> int:
        """KV tokens that the engine reserves for the next dispatch of `tracked`."""
        tokens = tracked.context_tokens + self.slices.output_tokens(tracked, online_resident=self.online_slots > 0)
        return self.ledger.need(tokens) * tracked.request.slots

    def advance(self, now_s: float) -> None:
        """Bring up to now what the limits ask: the room, the pacing, and once per second the headroom."""
        if now_s >= self.fresh_until_s:
            self._refresh(now_s)
        self.look(now_s)
        self.pacing.refill(self.chunk_tokens, now_s, self.iteration_s)

    def look(self, now_s: float, *, online_waits: bool = False) -> Room:
        """What offline may have of each iteration now. An online request that waits counts as one whose prompt is
        computed."""
        resident, model = self.attribution.batch.resident(), self.attribution.model
        if online_waits and not resident.prompt_tokens:
            resident = replace(resident, prompt_tokens=PROMPT_TOKENS)
        rows, fixed = self.settings.yield_rows, self.settings.prefill_slice_tokens
        room = self.attribution.price.room(resident, self._steady_tokens, self.arrivals.recent_per_s(now_s), now_s)
        if rows != "auto":
            online = self.online_slots > 0 or online_waits
            room = Room(inf if rows == "never" or not online else rows, room.chunk_tokens or CHUNK_UNKNOWN)
        elif self.neighbours and self.online_slots > self.in_use[ONLINE]:
            room = NO_ROOM  # what its iterations cost others on the same cards is not known
        if fixed and room.chunk_tokens:
            room = Room(room.rows, fixed, room.until_s)
        self.room = room
        tokens = resident.online_rows + resident.offline_rows + room.chunk_tokens
        context = resident.online_context + resident.offline_context
        self.iteration_s = model.iteration_s(tokens, context) if model.trusted else self.gap_s
        return room

    @property
    def _steady_tokens(self) -> float:
        """Tokens of an iteration in which all slots decode, and as much of prompts is computed as keeps them busy."""
        counts, unknown = self.counts, STEADY_FIRST * self.settings.slots
        ratio = (counts.offline_prompt_tokens + unknown) / (counts.output_tokens[OFFLINE] + unknown)
        return self.settings.slots * (1 + ratio)

    @property
    def chunk_tokens(self) -> int:
        """Prompt tokens that an iteration has room for, and a dispatch computes; 0 = whole prompts."""
        if (fixed := self.settings.prefill_slice_tokens) is not None:
            return fixed
        chunk, most = max(self.room.chunk_tokens, CHUNK_MIN), self.scheduler.offline_prefill_tokens
        return min(chunk, most) if most else chunk

    def _refresh(self, now_s: float) -> None:
        self.fresh_until_s = now_s + FRESH_S
        price, arrivals = self.attribution.price, self.arrivals
        price.mean_per_s, price.recent_s = arrivals.mean_per_s(now_s), arrivals.recent_s
        most = int(self.scheduler.headroom_share_max * self.settings.slots)
        expected = poisson_quantile(self.arrivals.per_s(now_s) * self.stop_s) if most else 0
        self.headroom = max(self.settings.slots_online_min, min(most, expected))

    def window_s(self, now_s: float) -> float:
        """How long a slot that comes free now waits for online."""
        window_s = self.scheduler.window_ms / 1000
        if self.scheduler.window_adaptive and not worth_waiting(self.arrivals.per_s(now_s), window_s):
            return 0.0
        return window_s

    def uncached_tokens(self, tracked: TrackedRequest) -> int:
        """What of its context the engine will have to compute, as far as we can tell; at least 1."""
        return max(1, tracked.context_tokens - int(self._expected_reuse(tracked) * self.slices.hit))

    def splits(self, tracked: TrackedRequest) -> bool:
        """True if the prompt of `tracked` may be computed chunk by chunk: its chunks are found again in the cache.

        It may go from engine to engine meanwhile: each is known to hold what it has computed, so each gets on.
        """
        return bool(self.chunk_tokens) and tracked.request.splits_prompt and self.slices.factor > 0

    def remembers(self, tracked: TrackedRequest) -> bool:
        """True if the KV cache should still hold the context of `tracked`, but for a block: it can go on at once."""
        uncached = tracked.context_tokens - tracked.cached_tokens
        return tracked.cached_on == self.settings.name and uncached <= self.ledger.block_tokens

    def _expected_reuse(self, tracked: TrackedRequest) -> int:
        """Tokens of its context that the KV cache should hold: its own, or those of others with its prefix."""
        if own_tokens := tracked.cached_tokens_on(self.settings.name):
            return own_tokens
        prefix_key = tracked.request.prefix_key
        return min(self.prefixes.tokens(prefix_key), max(0, tracked.context_tokens - 1)) if prefix_key else 0

    # ---- what may be taken back --------------------------------------------------------------------------------------

    @property
    def coming_slots(self) -> int:
        """Slots that are free, or will be before a stop could free them."""
        soon = self.soon_tokens
        ending = sum(
            tracked.request.slots
            for tracked in self.residents.values()
            if tracked.engine_runs and is_ending(tracked, soon)
        )
        return self.free.slots + self.draining + ending

    def lacking_kv(self, online: TrackedRequest) -> float:
        """KV tokens that `online` lacks here, what is draining counted as free; 0 if it would fit."""
        if self.ledger.kv_tokens_free == inf:
            return 0.0
        draining = sum(tracked.kv_tokens for tracked in self.residents.values() if not tracked.engine_runs)
        return max(0.0, self.kv_need(online) - self.ledger.kv_tokens_free - draining)

    def victims(self, slots: int, kv_tokens: float, sticky_after: int | None) -> list[TrackedRequest]:
        """The slices to stop for so many slots and KV tokens, cheapest first."""
        if slots <= 0 and kv_tokens <= 0:
            return []
        able = candidates(self.residents.values(), self.soon_tokens, sticky_after)
        ordered = cheapest_first(able, self.slices.hit, self.scheduler.preempt_quantum_tokens)
        return until_free(ordered, slots, kv_tokens)

    # ---- a dispatch, from its beginning to its end -------------------------------------------------------------------

    def begin(self, tracked: TrackedRequest, kind: DispatchKind, now_s: float) -> None:
        """`tracked` has its slots, its budget and its place in the ledger."""
        slots, lane = tracked.request.slots, tracked.request.lane
        if kind in (DispatchKind.ONLINE, DispatchKind.RESERVED):
            self.free.take(slots)
        else:
            self.free.take_ripe(slots)
        tracked.engine = self.settings.name
        tracked.streamed_tokens = 0
        tracked.reserved = kind is DispatchKind.RESERVED
        tracked.expected_reuse = self._expected_reuse(tracked)
        tracked.prompt_tokens = None
        tracked.budget_tokens = tracked.output_tokens_left
        uncached = tracked.context_tokens
        if lane is OFFLINE:
            uncached = self.uncached_tokens(tracked)
            self._size(tracked, kind)
            self.residents[tracked.request.id] = tracked
        held = (self.in_use[OFFLINE] + self.draining) / self.settings.slots if lane is ONLINE else 0.0
        self.in_use[lane] += slots
        self.counts.dispatches[kind] += 1
        if tracked.prompt_tokens is not None:
            uncached = tracked.prompt_tokens - tracked.expected_reuse
            self.ledger.hold(tracked, tracked.prompt_tokens + 1, uncached)
        else:
            self.ledger.hold(tracked, tracked.context_tokens + tracked.budget_tokens, uncached)
        if lane is OFFLINE:
            self.pacing.take(uncached if self.chunk_tokens else 0)
            self.counts.offline_prompt_tokens += uncached
        self.attribution.began(tracked, now_s, held)

    def _size(self, tracked: TrackedRequest, kind: DispatchKind) -> None:
        """The prompt comes first, in chunks; also in a reserved dispatch, or whoever is online would wait for all of
        it. One chunk takes a reserved dispatch: the request keeps its place, so that the next reserved dispatches
        add up to the prompt, and then to output.
        """
        chunk_tokens = self.chunk_tokens
        if kind is DispatchKind.RESERVED and self.settings.prefill_slice_tokens is None:
            chunk_tokens = min(max(chunk_tokens, CHUNK_UNKNOWN), self.scheduler.offline_prefill_tokens or CHUNK_UNKNOWN)
        if self.splits(tracked) and tracked.context_tokens - tracked.expected_reuse > chunk_tokens:
            tracked.prompt_tokens = tracked.expected_reuse + chunk_tokens
            tracked.budget_tokens = 1
            return
        tracked.budget_tokens = self.slices.output_tokens(tracked, online_resident=self.online_slots > 0)
        if kind is DispatchKind.RESERVED and tracked.request.resumable:
            tracked.budget_tokens = min(tracked.budget_tokens, self.scheduler.reserved_tokens or tracked.budget_tokens)

    def drain(self, tracked: TrackedRequest) -> None:
        """`tracked` was told to stop: its slots are no longer in use, and not free yet."""
        self.in_use[tracked.request.lane] -= tracked.request.slots
        self.draining += tracked.request.slots

    def confirmed(
        self, tracked: TrackedRequest, now_s: float, reused_tokens: int | None, output_tokens: int, *, stopped: bool
    ) -> None:
        """The engine's last word on a dispatch that went well: what it kept, and what its cache remembers now."""
        if tracked.stop_asked_s:
            self.stop_s += WEIGHT * (now_s - tracked.stop_asked_s - self.stop_s)
        if stopped and not output_tokens:
            return  # it may not have begun, and then it says nothing of the cache
        if not tracked.cached_tokens_on(self.settings.name):
            self.prefixes.learn(tracked.request.prefix_key, reused_tokens)
        elif tracked.expected_reuse:
            self.counts.resumed_tokens += tracked.expected_reuse
            # Only whole blocks can be found again: with large ones the rest would look like a cache that forgets.
            findable = tracked.expected_reuse - tracked.expected_reuse % self.ledger.block_tokens
            if reused_tokens is not None and findable:
                self.slices.observe(findable, reused_tokens)
            if reused_tokens is not None:
                self.counts.recomputed_tokens += max(0, tracked.expected_reuse - reused_tokens)
        # The engine keeps all but the last token of a sequence for reuse; a chunk of a prompt it keeps whole.
        cached_tokens = tracked.expected_reuse
        if tracked.prompt_tokens is not None:
            cached_tokens = tracked.prompt_tokens
            self.pacing.boundary(self.chunk_tokens, now_s)
        elif output_tokens:
            cached_tokens = tracked.context_tokens + output_tokens - 1
        tracked.ran_on(self.settings.name, cached_tokens)
        self.counts.output_tokens[tracked.request.lane] += output_tokens

    def leave(self, tracked: TrackedRequest, now_s: float) -> int:
        """The dispatch is over. Its slots are DRAINING still; how many KV tokens go with them."""
        self.attribution.left(tracked, now_s)
        self.residents.pop(tracked.request.id, None)
        tracked.engine = ""
        tracked.stop_asked_s = 0.0
        return self.ledger.release(tracked)

    def release(self, slots: int, kv_tokens: int, now_s: float) -> None:
        """Slots that were DRAINING are free, and so is what they held of the KV cache."""
        self.draining -= slots
        self.ledger.kv_tokens -= kv_tokens
        self.free.add(slots, now_s + self.window_s(now_s))

    def streamed(self, gaps_s: tuple[float, ...], begun: list[TrackedRequest], now_s: float) -> bool:
        """A tick of its streams, in which `begun` gave their first token; True if a prompt is done."""
        if gaps_s:
            self.gap_s += WEIGHT * (sum(gaps_s) / len(gaps_s) - self.gap_s)
        self.attribution.streamed(gaps_s, begun, now_s)
        if any(each.request.lane is OFFLINE and each.prefill_tokens >= CHUNK_MIN for each in begun):
            self.pacing.boundary(self.chunk_tokens, now_s)
        leased = [tracked for tracked in begun if self.ledger.lease(tracked)]  # each of them, so no generator
        return bool(leased)

    @property
    def soon_tokens(self) -> int:
        """A slice with so few tokens left is over before a stop would end it."""
        return max(1, int(self.stop_s / self.gap_s)) if self.gap_s > 0 else 1

    def starved_until(self, now_s: float) -> None:
        """Offline gets a slot now, or its queue is empty: the wait that ends here is measured."""
        if self.offline_waits_since_s is not None:
            self.starvation_gap_s = max(self.starvation_gap_s, now_s - self.offline_waits_since_s)
            self.offline_waits_since_s = None
