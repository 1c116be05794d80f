"""The settings of the scheduler. A nonsense value cannot be built; each default has its reason beside it.

`__pydantic_config__` is read by the settings file's loader (`sidecar/edge/config.py`): unknown names are an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sidecar.core.errors import SettingsError

FORBID_UNKNOWN: dict[str, Any] = {"extra": "forbid"}


def require(condition: bool, message: str) -> None:
    """Raise SettingsError(message) unless `condition` holds."""
    if not condition:
        raise SettingsError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What the scheduler has to know about one engine: one model on one Triton endpoint."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    name: str
    model: str = "tensorrt_llm"
    slots: int = 8  # what this sidecar owns of the engine's max_batch_size
    slots_online_min: int = 0  # headroom: so many free slots are left to the next online arrivals
    tokens_max: int = 2048  # prompt + output of one sequence: the engine's max_seq_len
    lost_hold_s: float = 0.15  # after Lost: the engine's cancellation check period + two iterations (M6)
    gpu_group: str = ""  # engines that share cards name the same one

    def __post_init__(self) -> None:
        require(self.slots >= 1, f"engine {self.name}: slots must be >= 1, not {self.slots}")
        require(
            0 <= self.slots_online_min <= self.slots,
            f"engine {self.name}: slots_online_min must be in 0..{self.slots}, not {self.slots_online_min}",
        )
        require(self.tokens_max >= 2, f"engine {self.name}: tokens_max must be >= 2, not {self.tokens_max}")
        require(self.lost_hold_s >= 0, f"engine {self.name}: lost_hold_s must be >= 0, not {self.lost_hold_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """How one sidecar shares its engines between the lanes."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    reservation_every: int = 10  # N: every Nth contended grant is offline's (the measured origin's value)
    reservation_turns_max: int = 2  # saved turns are capped, so that an idle night cannot become a burst
    window_ms: float = 15.0  # a freed slot waits this long for online work (the measured origin's value)
    online_queue_max: int = 1024  # beyond it RESOURCE_EXHAUSTED: a queue that long is already minutes of waiting
    offline_queue_max: int = 2048  # items per model: enough to order by deadline, little memory
    offline_queue_low: int = 1024  # intake resumes here
    attempts_max: int = 5  # retryable failures of an offline item before it is a dead letter
    retry_backoff_s: float = 0.5  # doubled per attempt, at most 30 s
    losses_max: int = 20  # broken streams without a token in between before an item is taken for what breaks them

    def __post_init__(self) -> None:
        require(self.reservation_every >= 2, f"reservation_every must be >= 2, not {self.reservation_every}")
        require(
            self.reservation_turns_max >= 1, f"reservation_turns_max must be >= 1, not {self.reservation_turns_max}"
        )
        require(0 <= self.window_ms <= 10_000, f"window_ms must be in 0..10000, not {self.window_ms}")
        require(self.online_queue_max >= 1, f"online_queue_max must be >= 1, not {self.online_queue_max}")
        require(
            0 <= self.offline_queue_low < self.offline_queue_max,
            f"offline_queue_low must be in 0..offline_queue_max-1: {self.offline_queue_low}, {self.offline_queue_max}",
        )
        require(self.attempts_max >= 1, f"attempts_max must be >= 1, not {self.attempts_max}")
        require(self.retry_backoff_s >= 0, f"retry_backoff_s must be >= 0, not {self.retry_backoff_s}")
        require(self.losses_max >= 1, f"losses_max must be >= 1, not {self.losses_max}")
