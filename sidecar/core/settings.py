"""The settings of the scheduler. A nonsense value cannot be built; each default has its reason beside it.

`__pydantic_config__` is read by the settings file's loader (`sidecar/settings/file.py`): unknown names are an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal

from sidecar.core.errors import SettingsError

BLOCK_TOKENS = 32  # TensorRT-LLM's default
FORBID_UNKNOWN: dict[str, Any] = {"extra": "forbid"}


def require(condition: bool, message: str) -> None:
    """Raise SettingsError(message) unless `condition` holds."""
    if not condition:
        raise SettingsError(message)


class ReservationMode(StrEnum):
    """Whether anything may put off a reserved dispatch that is due."""

    FIRM = "firm"  # nothing: every window of k*N contended dispatches holds at least k-1 offline ones
    YIELDING = "yielding"  # online at risk, by at most postpone_max_s: N contended dispatches + postpone_max_s


class OnDeadline(StrEnum):
    """What becomes of an offline request whose deadline has passed before it is complete."""

    EXPIRE = "expire"  # refused, as soon as it waits: what its slice has still to give nobody is waiting for
    RUN = "run"  # run all the same, and before those whose deadline is later


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What the scheduler has to know about one engine: one model on one Triton endpoint."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    name: str  # in metrics, logs and spans
    model: str = "tensorrt_llm"  # Triton's name of the model that takes token ids
    slots: int = 8  # what this sidecar owns of the engine's max_batch_size
    slots_online_min: int = 0  # headroom: so many free slots are left to the next online arrivals
    gpu_group: str = ""  # engines on the same cards name the same one: offline on each yields to online on any of them
    tokens_max: int = 2048  # prompt + output of one sequence: the engine's max_seq_len
    lost_hold_s: float = 0.15  # after Lost: the engine's cancellation check period and two iterations
    kv_tokens: int = 0  # the KV cache, in tokens; 0 = as the engine's gauges say, or unbounded without gauges
    kv_block_tokens: int = 0  # it reserves whole blocks; 0 = as its gauges say, and TensorRT-LLM's default before
    # Rows that offline keeps while online is resident: so many, all of them, or as many as the price allows.
    yield_rows: int | Literal["auto", "never"] = "auto"
    prefill_slice_tokens: int | None = None  # ids of an offline prompt per dispatch; 0 = all at once, None = by price

    def __post_init__(self) -> None:
        require(self.slots >= 1, f"engine {self.name}: slots must be >= 1, not {self.slots}")
        require(
            0 <= self.slots_online_min <= self.slots,
            f"engine {self.name}: slots_online_min must be in 0..{self.slots}, not {self.slots_online_min}",
        )
        require(self.tokens_max >= 2, f"engine {self.name}: tokens_max must be >= 2, not {self.tokens_max}")
        require(self.lost_hold_s >= 0, f"engine {self.name}: lost_hold_s must be >= 0, not {self.lost_hold_s}")
        chunk = self.prefill_slice_tokens
        require(chunk is None or chunk >= 0, f"engine {self.name}: prefill_slice_tokens must be >= 0, not {chunk}")
        require(self.kv_tokens >= 0, f"engine {self.name}: kv_tokens must be >= 0, not {self.kv_tokens}")
        require(
            self.kv_block_tokens >= 0, f"engine {self.name}: kv_block_tokens must be >= 0, not {self.kv_block_tokens}"
        )
        require(
            self.yield_rows in ("auto", "never")
            or (isinstance(self.yield_rows, int) and 0 <= self.yield_rows <= self.slots),
            f"engine {self.name}: yield_rows must be in 0..{self.slots}, auto or never, not {self.yield_rows}",
        )

    @property
    def block_tokens(self) -> int:
        """Tokens per block of the KV cache, as long as no gauge says otherwise."""
        return self.kv_block_tokens or BLOCK_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettings:
    """What one tenant may have, in each lane of each model."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    weight: float = 1.0  # its share against the others that wait
    waiting_max: int = 0  # requests that may wait; 0 = as many as the lane's queue holds
    slots_max: int = 0  # slots it may have at a time, over all engines of the model; 0 = no limit

    def __post_init__(self) -> None:
        require(0 < self.weight < float("inf"), f"tenant: weight must be > 0 and finite, not {self.weight}")
        require(self.waiting_max >= 0, f"tenant: waiting_max must be >= 0, not {self.waiting_max}")
        require(self.slots_max >= 0, f"tenant: slots_max must be >= 0, not {self.slots_max}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """How one sidecar shares its engines between the lanes."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    reservation_every: int = 10  # N: every Nth contended dispatch is offline's (the measured origin's value)
    reservation_every_urgent: int = 4  # N where a job has no time left; in between by urgency
    urgency_horizon_s: float = 6 * 3600.0  # a job with less laxity than this raises offline's share; 0 = none does
    week_s: float = 7 * 24 * 3600.0  # after so long the load is expected to repeat itself (a simulated week is shorter)
    reserved_saved_max: int = 2  # saved reserved dispatches are capped, so that an idle night cannot become a burst
    reservation_mode: ReservationMode = ReservationMode.FIRM  # `yielding`: online at risk may put one off
    postpone_max_s: float = 60.0  # how long a reserved dispatch may be put off in mode `yielding`
    ttft_objective_ms: float = 500.0  # online: arrival to first token, 95th percentile; a request may state its own
    e2e_objective_ms: float = 800.0  # online: arrival to last token; counted in the metrics, and decides nothing
    # What offline may add to the wait for the first token, as a share of what it takes alone: mean over requests. Where
    # online is rarely resident, first tokens may have what gaps leave of `itl_added`: both are promised together.
    ttft_added: float = 0.10
    itl_added: float = 0.25  # the same of the gap between two tokens: mean over tokens
    window_ms: float = 15.0  # a freed slot waits this long for online work (the measured origin's value)
    window_adaptive: bool = True  # no window where it would hardly ever meet an arrival
    headroom_share_max: float = 0.125  # sized headroom takes at most this share of an engine: one slot of 8
    slice_tokens: int = 256  # an offline request runs in slices of so many output tokens; 0 = in one piece
    slice_tokens_busy: int = 128  # while online is resident
    reserved_tokens: int = 32  # of a reserved dispatch, which nothing stops: a long one would delay the next arrivals
    preempt: bool = True  # stop an offline slice when online waits for its slot
    preempt_max: int = 4  # slices of one engine that are being stopped at a time
    preempt_quantum_tokens: int = 16  # a slice that gave fewer is a victim only if there is no other
    preempt_sticky_after: int = 3  # a request preempted so often is not preempted again (it may still have to yield)
    offline_prefill_tokens: int = 512  # prompt tokens of offline work in prefill at a time, or one prompt of any length
    # Of prompts above it, sent whole, one at a time is computed, and none of offline's beside resident online: on an
    # A100 such a prefill alone takes as long as the TTFT objective; 0 = all may be.
    long_prompt_tokens: int = 4096
    kv_guard_share_min: float = 0.05  # of the KV cache, left to online's growth, at least
    kv_guard_share_max: float = 0.30  # and at most
    # Items of the backlog with equal prefixes run together if they came so close, in arrivals of their tenant and in
    # seconds; 0 = as they came. Of 128 all but one find the prefix cached; the watermark waits for no more than those.
    prefix_group_window: int = 128
    prefix_group_s: float = 60.0  # see prefix_group_window
    tenant_fairness: bool = True  # False: tenants are not told apart, and none has limits or figures of its own
    tenant_input_price: float = 1.0  # weighted tokens per prompt token
    tenant_output_price: float = 2.0  # per output token, which costs a row of an iteration (Sheng et al. use 1 and 2)
    tenant_default: TenantSettings = field(default_factory=TenantSettings)  # of those not named below
    tenants: Mapping[str, TenantSettings] = field(default_factory=dict)
    online_queue_max: int = 1024  # beyond it RESOURCE_EXHAUSTED: a queue that long is already minutes of waiting
    offline_queue_max: int = 2048  # requests per model: enough to order by deadline, little memory
    offline_queue_low: int = 1024  # intake resumes here
    # Offline work past its deadline would take the slots of work that can still be in time, and is of no use any more.
    on_deadline: OnDeadline = OnDeadline.EXPIRE
    attempts_max: int = 5  # retryable failures of an offline request before it is a dead letter
    retry_backoff_s: float = 0.5  # doubled per attempt, at most 30 s
    losses_max: int = 20  # broken streams without a token in between before a request is taken for what breaks them

    @property
    def credit_urgent(self) -> int:
        """Credit that a contended online dispatch earns offline where a job has no time left; 1 otherwise."""
        return max(1, (self.reservation_every - 1) // (self.reservation_every_urgent - 1))

    def __post_init__(self) -> None:
        require(self.reservation_every >= 2, f"reservation_every must be >= 2, not {self.reservation_every}")
        require(
            self.reservation_every_urgent >= 2,
            f"reservation_every_urgent must be >= 2, not {self.reservation_every_urgent}",
        )
        require(self.reserved_saved_max >= 1, f"reserved_saved_max must be >= 1, not {self.reserved_saved_max}")
        require(self.week_s > 0, f"week_s must be > 0, not {self.week_s}")
        require(0 <= self.window_ms <= 10_000, f"window_ms must be in 0..10000, not {self.window_ms}")
        require(self.online_queue_max >= 1, f"online_queue_max must be >= 1, not {self.online_queue_max}")
        require(
            0 <= self.offline_queue_low < self.offline_queue_max,
            f"offline_queue_low must be in 0..offline_queue_max-1: {self.offline_queue_low}, {self.offline_queue_max}",
        )
        require(self.attempts_max >= 1, f"attempts_max must be >= 1, not {self.attempts_max}")
        require(self.retry_backoff_s >= 0, f"retry_backoff_s must be >= 0, not {self.retry_backoff_s}")
        require(self.losses_max >= 1, f"losses_max must be >= 1, not {self.losses_max}")
        require(
            0 <= self.kv_guard_share_min <= self.kv_guard_share_max <= 1,
            f"0 <= kv_guard_share_min <= kv_guard_share_max <= 1: {self.kv_guard_share_min}, {self.kv_guard_share_max}",
        )
        require(0 <= self.headroom_share_max <= 1, f"headroom_share_max must be in 0..1, not {self.headroom_share_max}")
        for name in (
            *("slice_tokens", "slice_tokens_busy", "reserved_tokens", "preempt_quantum_tokens", "preempt_sticky_after"),
            *("preempt_max", "offline_prefill_tokens", "long_prompt_tokens", "prefix_group_window", "prefix_group_s"),
            *(
                "postpone_max_s",
                "urgency_horizon_s",
                "ttft_objective_ms",
                "tenant_input_price",
                "tenant_output_price",
                "e2e_objective_ms",
                "ttft_added",
                "itl_added",
            ),
        ):
            require(getattr(self, name) >= 0, f"{name} must be >= 0, not {getattr(self, name)}")
