"""A serving profile: how one model is built and served on a kind of GPU; a small file of model_repository/profiles.

Both `sidecar fill` and `sidecar build-engine` read it, so that an engine and the configuration that serves it agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from sidecar.core.errors import SettingsError
from sidecar.core.settings import FORBID_UNKNOWN, require
from sidecar.settings.file import is_address

# What an A100 computes, and behind it what it does not: that is refused by name, with the GPU that would do it.
Quantization = Literal["none", "int8_wo", "int4_wo", "int8_sq", "int4_awq", "fp8", "fp8_pc_pt", "w4a8_awq", "nvfp4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingProfile:
    """Profile by which one model is built and served, in the names of trtllm-build and of config.pbtxt."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    backend: Literal["tensorrtllm", "llmapi"]
    tensor_parallel_size: int  # GPUs of one engine, and ranks
    triton: tuple[str, ...]  # host:port of the gRPC port of each engine, as the sidecar reaches it
    gpu: str = "a100-80gb"
    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    quantization: Quantization = "none"
    kv_cache_dtype: Literal["auto", "int8", "fp8"] = "auto"
    max_batch_size: int = 64
    max_seq_len: int = 16384  # prompt + output: the sidecar's tokens_max
    max_num_tokens: int = 2048  # the prompt tokens of one iteration: what a prompt adds to a gap between two tokens
    kv_cache_reuse: bool = True  # without it a stopped item is computed anew
    chunked_context: bool = True  # without it one long prompt stalls every stream
    kv_cache_free_gpu_mem_fraction: float = 0.9  # of what is free after the weights are loaded
    kv_cache_host_memory_bytes: int = 0  # blocks that leave the GPU wait there; needs unlimited memlock
    speculative: Literal["none", "lookahead", "eagle", "medusa"] = "none"
    lookahead: tuple[int, int, int] = (7, 7, 7)  # window, n-gram, verification set
    tokenizer_instances: int = 4  # of preprocessing and of postprocessing

    def __post_init__(self) -> None:
        require(bool(self.triton), "triton: at least one host:port is needed")
        for address in self.triton:
            require(is_address(address), f"triton: must be host:port, not '{address}'")
        for name in ("tensor_parallel_size", "max_batch_size", "max_num_tokens", "tokenizer_instances"):
            require(getattr(self, name) >= 1, f"{name} must be >= 1, not {getattr(self, name)}")
        require(self.max_seq_len >= 2, f"max_seq_len must be >= 2, not {self.max_seq_len}")
        require(self.kv_cache_host_memory_bytes >= 0, "kv_cache_host_memory_bytes must be >= 0")
        fraction = self.kv_cache_free_gpu_mem_fraction
        require(0 < fraction < 1, f"kv_cache_free_gpu_mem_fraction must be between 0 and 1, not {fraction}")
        require(min(self.lookahead) >= 1, f"lookahead must be three numbers >= 1, not {self.lookahead}")

    @property
    def max_input_len(self) -> int:
        """A resume sends the prompt and all that was generated: any length that leaves one token to generate."""
        return self.max_seq_len - 1

    @property
    def online_only(self) -> bool:
        """True where the engine speculates, which pays only while the batch is small; backfill would fill it."""
        return self.speculative != "none"


def load_profile(name: str, project: Path) -> ServingProfile:
    """Read a profile: a name of `project`/model_repository/profiles, or a path. Raises SettingsError."""
    folder = project / "model_repository" / "profiles"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(each.stem for each in folder.glob("*.yaml"))) or f"none in {folder}"
        raise SettingsError(f"no profile {path}; known: {known}") from None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, Mapping):
        raise SettingsError(f"{path} must hold a mapping")
    try:
        return TypeAdapter(ServingProfile).validate_python(document)
    except ValidationError as error:
        lines = (f"{path}: {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise SettingsError("\n".join(lines)) from None
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
