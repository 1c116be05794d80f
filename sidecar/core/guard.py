"""The guard: how much slower offline may make online on one engine, so that online's objectives hold.

An online request that would take A seconds alone may take up to its objective. The latency model says what A is for
each one, so the 99th percentile of A says how much room there is: the slack. Half of it goes to offline rows that
decode beside online (each lengthens every iteration), half to offline prompts that are computed meanwhile (each delays
everybody who is there by its prefill); and neither may slow online down by more than `slowdown_max`, however much room
there is. A margin holds part of the slack back; it follows what is really measured. As long as the model is not trusted
offline keeps no rows beside online: that is what harms nobody.
"""

from __future__ import annotations

from collections import deque
from math import inf

from sidecar.core.latency import REACH, DecodingRows, LatencyModel
from sidecar.core.request import OFFLINE, ONLINE, Lane

REQUESTS = 512  # whose time alone is remembered
REQUESTS_MIN = 20
RENEWED_EVERY = 16  # requests: the percentile is not sorted out for each
HEAD_OF_LINE_SHARE = 0.4  # of the TTFT objective: the longest wait that offline may cause (rule of the measured origin)
WINDOW_S, QUIET_WINDOWS = 30.0, 4
MARGIN_FIRST, MARGIN_STEP = 0.5, 0.05


class Margin:
    """The share of the slack that is held back: a bisection that tightens at once and loosens slowly."""

    __slots__ = ("_high", "_low", "_quiet_from_s", "share")

    def __init__(self) -> None:
        self.share = MARGIN_FIRST
        self._low, self._high = 0.0, 1.0
        self._quiet_from_s = 0.0

    def tighten(self, now_s: float) -> None:
        """The objective was missed: as much is too little."""
        self._low = self.share
        if self._high - self._low < MARGIN_STEP:
            self._high = 1.0  # the bracket was closed too early: the load has changed
        self._move(now_s)

    def tick(self, now_s: float) -> None:
        """Time passes; after enough quiet windows less may do."""
        if now_s - self._quiet_from_s < WINDOW_S * QUIET_WINDOWS:
            return
        self._high = self.share
        if self._high - self._low < MARGIN_STEP:
            self._low = 0.0
        self._move(now_s)

    def _move(self, now_s: float) -> None:
        self.share = (self._low + self._high) / 2
        self._quiet_from_s = now_s


class Guard:
    """What offline may have on one engine by the latency model. Rows count what decodes, times are seconds."""

    def __init__(
        self,
        model: LatencyModel,
        batch: DecodingRows,
        *,
        enabled: bool,
        ttft_s: float,
        e2e_s: float,
        slowdown_max: float,
    ) -> None:
        self._model, self._batch = model, batch
        self._ttft_s, self._e2e_s, self._slowdown_max = ttft_s, e2e_s, slowdown_max
        self._alone: deque[float] = deque(maxlen=REQUESTS)
        self._since = 0
        self._p99: float | None = None
        self._p50 = 0.0
        self._online: dict[str, tuple[float, float]] = {}  # dispatched ones, oldest first: both counters at that time
        self.enabled = enabled
        self.margin = Margin()
        self.online_prefill_s = self.offline_prefill_s = 0.0  # what prefills have cost so far, by lane of the prompt

    @property
    def slack_s(self) -> float:
        """How much longer than alone the slowest online requests may take."""
        if self._p99 is None:
            return 0.0
        return max(0.0, (self._e2e_s - self._p99) * (1 - self.margin.share))

    @property
    def alone_p99_s(self) -> float | None:
        """The 99th percentile of what online requests would take alone; None before there are enough of them."""
        return self._p99

    # ---- what offline may have ---------------------------------------------------------------------------------------

    def rows_max(self, online_rows: int) -> float:
        """Rows that offline may have beside so many online ones; inf if the guard is switched off."""
        if not self.enabled:
            return inf
        if not self._model.trusted:
            return 0
        model, batch = self._model, self._batch
        offline = batch.rows[OFFLINE]
        context = batch.context[OFFLINE] / offline if offline else 0.0
        base_s = model.iteration_s(online_rows, batch.context[ONLINE])
        row_s = model.iteration_s(1, context) - model.iteration_s(0, 0)
        room_s = base_s * self.slowdown
        if not room_s:
            return 0  # whatever a row seems to cost: what hardly varies cannot be told from nothing
        if row_s <= 0:
            return inf
        return min(int(room_s / row_s), max(0, int(REACH * model.rows_seen) - online_rows))

    @property
    def slowdown(self) -> float:
        """By which share offline rows may lengthen an iteration that online waits for."""
        if not self._p99:
            return 0.0
        return min(self._slowdown_max, self.slack_s / 2 / self._p99)

    def prefill_allows(self, tokens: int, ahead_tokens: int, *, beside_online: bool) -> bool:
        """True if an offline prompt of so many tokens may be computed now, behind `ahead_tokens` of other such ones.

        Where no online is, the longest prompt may be, if no other is: it would wait for ever otherwise.
        """
        if not self.enabled or not self._model.prefill_trusted:
            return True
        cost_s = self._model.prefill_s(tokens + ahead_tokens)
        if not beside_online:
            return not ahead_tokens or cost_s <= HEAD_OF_LINE_SHARE * self._ttft_s
        _, offline_from_s = next(iter(self._online.values()), (0.0, self.offline_prefill_s))
        return self.offline_prefill_s - offline_from_s + cost_s <= min(self.slack_s / 2, self._slowdown_max * self._p50)

    # ---- what it is told ---------------------------------------------------------------------------------------------

    def began(self, request_id: str, lane: Lane, prefill_tokens: int, cached_tokens: int) -> None:
        """A dispatch: an offline prompt delays whoever is there, an online one is what online does to itself."""
        cost_s = self._model.prefill_s(prefill_tokens, cached_tokens) if self._model.prefill_trusted else 0.0
        if lane is ONLINE:
            self._online[request_id] = (self.online_prefill_s, self.offline_prefill_s)
            self.online_prefill_s += cost_s
        else:
            self.offline_prefill_s += cost_s

    def left(self, request_id: str) -> None:
        """The dispatch is over."""
        self._online.pop(request_id, None)

    def alone_s(self, request_id: str, output_tokens: int) -> float | None:
        """What this online request would have taken without offline, from dispatch to end; None without a trusted
        model.

        Every iteration as if only online rows had been in it, and every prompt that online brought meanwhile.
        """
        began = self._online.get(request_id)
        if began is None or not self._model.prefill_trusted:
            return None
        rows = max(1, self._batch.rows[ONLINE])
        iteration_s = self._model.iteration_s(rows, self._batch.context[ONLINE])
        joined_s = iteration_s / 2 if rows > 1 else 0.0  # an arrival waits for half an iteration, if one is under way
        return joined_s + output_tokens * iteration_s + self.online_prefill_s - began[0]

    def remember(self, alone_s: float) -> None:
        """An online request is complete that would have taken so long alone."""
        self._alone.append(alone_s)
        self._since += 1
        if self._since >= RENEWED_EVERY and len(self._alone) >= REQUESTS_MIN:
            self._since = 0
            ordered = sorted(self._alone)
            self._p50, self._p99 = ordered[len(ordered) // 2], ordered[int(0.99 * (len(ordered) - 1))]
