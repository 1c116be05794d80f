"""The engine that the parameters of a model's config.pbtxt ask for.

Names and meanings are those of NVIDIA's engine model where it has them; `engine`, `preset`, `profile`, `seed`,
`max_num_tokens`, `max_seq_len` and `tokens_per_block` are ours, because there trtllm-build fixes
them. An empty value or an unfilled `${…}` counts as unset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from engine.batcher import BatcherSettings, Policy
from engine.calls import Call, Deliver
from engine.gauges import Gauges
from engine.numpy_engine import NumpyEngine, NumpySettings
from engine.profile import profile_named


class Engine(Protocol):
    """What the Triton model needs of an engine. `submit` gives the function that stops the call."""

    gauges: Gauges
    overruns: int

    def start(self) -> None: ...
    def close(self) -> None: ...
    def submit(self, call: Call, deliver: Deliver) -> Callable[[], None]: ...


class Parameters:
    """The string parameters of one model. Errors name the key."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = {key: value for key, value in values.items() if value and not value.startswith("${")}

    def text(self, key: str, default: str) -> str:
        return self._values.get(key, default)

    def number(self, key: str, default: int) -> int:
        try:
            return int(self._values.get(key, default))
        except ValueError as error:
            raise ValueError(f"parameter '{key}' must be a whole number, not {self._values[key]!r}") from error

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, str(default)).lower()
        if value not in ("true", "false"):
            raise ValueError(f"parameter '{key}' must be true or false, not {value!r}")
        return value == "true"


def build_engine(parameters: Parameters, model_dir: Path) -> Engine:
    """The engine named by the parameter `engine`, not started yet. Raises ValueError naming a wrong parameter."""
    match parameters.text("engine", "numpy"):
        case "numpy":
            return NumpyEngine(numpy_settings(parameters, model_dir))
        case other:
            raise ValueError(f"parameter 'engine' must be numpy, not {other!r}")


def numpy_settings(parameters: Parameters, model_dir: Path) -> NumpySettings:
    """The settings of the CPU engine. `tokenizer_dir` is relative to the model's folder unless it is absolute."""
    profile_name = parameters.text("profile", "")
    policy = parameters.text("batch_scheduler_policy", Policy.GUARANTEED_NO_EVICT)
    if policy not in list(Policy):
        raise ValueError(f"parameter 'batch_scheduler_policy' must be one of {[*map(str, Policy)]}, not {policy!r}")
    batcher = BatcherSettings(
        max_batch_size=parameters.number("max_batch_size", 8),
        max_num_tokens=parameters.number("max_num_tokens", 512),
        max_seq_len=parameters.number("max_seq_len", 2048),
        kv_tokens_max=parameters.number("max_tokens_in_paged_kv_cache", 81_920),
        tokens_per_block=parameters.number("tokens_per_block", 32),
        chunked_context=parameters.flag("enable_chunked_context", True),
        kv_cache_reuse=parameters.flag("enable_kv_cache_reuse", True),
        policy=Policy(policy),
        cancellation_check_period_s=parameters.number("cancellation_check_period_ms", 100) / 1000,
    )
    return NumpySettings(
        tokenizer_dir=(model_dir / parameters.text("tokenizer_dir", "../../tokenizer")).resolve(),
        preset=parameters.text("preset", "small"),
        seed=parameters.number("seed", 0),
        profile=profile_named(profile_name) if profile_name else None,
        batcher=batcher,
    )
