"""The engine that the parameters of a model's config.pbtxt ask for.

Names and meanings are those of NVIDIA's engine model where it has them; `engine`, `preset`, `profile`, `device`,
`seed`, `max_num_tokens`, `max_input_len`, `max_seq_len`, `tokens_per_block` and `tensor_parallel_size` are ours,
because there trtllm-build fixes them. `max_batch_size` comes from the header of the config.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from engine.calls import Deliver, EngineCall
from engine.gauges import Gauges
from engine.llmapi import LlmApiEngine
from engine.numpy_engine import NumpyEngine, NumpySettings
from engine.parameters import EngineParameters
from sidecar.inflight.batch import BatcherSettings, CapacityPolicy
from sidecar.inflight.measured import measured_profile
from sidecar.inflight.profile import IterationTimes, profile_named


class ServedEngine(Protocol):
    """What the Triton model needs of an engine. `submit` gives the function that stops the call."""

    gauges: Gauges
    overruns: int
    broken: str | None  # why it will never answer again

    def start(self) -> None: ...
    def close(self) -> None: ...
    def submit(self, call: EngineCall, deliver: Deliver) -> Callable[[], None]: ...


def build_engine(parameters: EngineParameters, model_dir: Path) -> ServedEngine:
    """The engine named by the parameter `engine`, not started yet. Raises ValueError naming a wrong parameter."""
    match parameters.text("engine", "numpy"):
        case "numpy":
            return NumpyEngine(numpy_settings(parameters, model_dir))
        case "torch":
            device = parameters.text("device", "cuda")
            return NumpyEngine(numpy_settings(parameters, model_dir, device))
        case "llmapi":
            return LlmApiEngine(parameters)
        case other:
            raise ValueError(f"parameter 'engine' must be numpy, torch or llmapi, not {other!r}")


def numpy_settings(parameters: EngineParameters, model_dir: Path, device: str | None = None) -> NumpySettings:
    """The settings of the CPU engine. `tokenizer_dir` is relative to the model's folder unless it is absolute."""
    profile_name = parameters.text("profile", "")
    policy = parameters.text("batch_scheduler_policy", CapacityPolicy.GUARANTEED_NO_EVICT)
    if policy not in list(CapacityPolicy):
        raise ValueError(
            f"parameter 'batch_scheduler_policy' must be one of {[*map(str, CapacityPolicy)]}, not {policy!r}"
        )
    batcher = BatcherSettings(
        max_batch_size=parameters.number("max_batch_size", 8),
        max_num_tokens=parameters.number("max_num_tokens", 512),
        max_seq_len=parameters.number("max_seq_len", 2048),
        max_input_len=parameters.number("max_input_len", 0) or None,
        kv_tokens_max=parameters.number("max_tokens_in_paged_kv_cache", 81_920),
        tokens_per_block=parameters.number("tokens_per_block", 32),
        chunked_context=parameters.flag("enable_chunked_context", True),
        kv_cache_reuse=parameters.flag("enable_kv_cache_reuse", True),
        policy=CapacityPolicy(policy),
        cancellation_check_period_s=parameters.number("cancellation_check_period_ms", 100) / 1000,
    )
    return NumpySettings(
        tokenizer_dir=(model_dir / parameters.text("tokenizer_dir", "../../tokenizer")).resolve(),
        preset=parameters.text("preset", "small"),
        seed=parameters.number("seed", 0),
        profile=_profile(profile_name, model_dir) if profile_name and device is None else None,
        device=device,
        batcher=batcher,
    )


def _profile(name: str, model_dir: Path) -> IterationTimes:
    """Return the profile of that name, or the one in the file if it ends in .json. Raises ValueError."""
    if not name.endswith(".json"):
        return profile_named(name)
    try:
        return measured_profile((model_dir / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"parameter 'profile' is {name}: {error}") from error
