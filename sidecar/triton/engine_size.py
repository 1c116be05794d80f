"""How large an engine is by its own word, and what of the settings it contradicts.

Three sources, each of which may be silent: the gauges (0 until the first iteration), the model's config.pbtxt as Triton
has it, and the config.json that trtllm-build writes into the engine's directory, where that is mounted here too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.settings.file import EngineEndpoint
from sidecar.triton.client import EngineClient
from sidecar.triton.gauges import EngineScrape
from sidecar.triton.models import LOOK_TIMEOUT_S, config_of

FILE_BYTES_MAX = 1 << 20
DIGITS_MAX = 12
FAR_BELOW = 0.5  # of the engine's batch: fewer slots than that are more likely forgotten than meant


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSize:
    """What one source says. None = it does not say."""

    source: str  # as it stands in a sentence
    sequences_max: int | None = None  # that an iteration takes
    tokens_max: int | None = None  # prompt + output of one sequence
    prompt_tokens_max: int | None = None
    kv_tokens: int | None = None
    reuses: bool | None = None  # KV blocks, which resumes live on


def of_gauges(scrape: EngineScrape) -> EngineSize:
    """The gauges' word."""
    measured = scrape.measured
    kv_tokens = (measured.kv_blocks_max or 0) * (measured.tokens_per_block or 0)
    return EngineSize(
        source='its gauge request_type="max"', sequences_max=scrape.sequences_max or None, kv_tokens=kv_tokens or None
    )


def of_model_config(config: Any) -> EngineSize:
    """The word of a ModelConfigResponse's `config`. An empty value and an unfilled `${…}` say nothing."""
    values = {key: each.string_value for key, each in config.parameters.items()}

    def number(key: str) -> int | None:
        text = values.get(key, "")
        return int(text) or None if text.isdecimal() and len(text) < DIGITS_MAX else None

    return EngineSize(
        source="its config.pbtxt",
        sequences_max=config.max_batch_size or None,
        tokens_max=number("max_seq_len"),
        prompt_tokens_max=number("max_input_len"),
        kv_tokens=number("max_tokens_in_paged_kv_cache"),
    )


def of_engine_file(path: Path) -> EngineSize | None:
    """The word of an engine's config.json; None for a file that is none, or cannot be read here."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(FILE_BYTES_MAX))
        built: Mapping[str, Any] = document["build_config"]
        plugins: Mapping[str, Any] = built.get("plugin_config") or {}
        sizes = [built.get(key) for key in ("max_batch_size", "max_seq_len", "max_input_len")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    sequences, tokens, prompt = (each if type(each) is int and each > 0 else None for each in sizes)
    paged = plugins.get("use_paged_context_fmha") if isinstance(plugins, Mapping) else None
    return EngineSize(
        source=str(path),
        sequences_max=sequences,
        tokens_max=tokens,
        prompt_tokens_max=prompt,
        reuses=paged if isinstance(paged, bool) else None,
    )


async def look_at_size(client: EngineClient, model: str, timeout_s: float = LOOK_TIMEOUT_S) -> tuple[EngineSize, ...]:
    """What the model's config and the engine's file say. Raises EngineError if Triton does not give the config."""
    async with asyncio.timeout(timeout_s):
        config = await config_of(client, model)
        if config is None:
            return ()
        place = config.parameters["gpt_model_path"].string_value if "gpt_model_path" in config.parameters else ""
        file = None
        if place.startswith("/"):  # the same path in both containers
            file = await asyncio.to_thread(of_engine_file, Path(place) / "config.json")
    return tuple(each for each in (of_model_config(config), file) if each is not None)


def size_faults(engine: EngineEndpoint, sizes: Sequence[EngineSize]) -> list[str]:
    """What cannot work: the engine would queue what the sidecar believes to run, or cut or refuse what it promises."""
    return [fault for size in sizes for fault in _faults(engine, size)]


def _faults(engine: EngineEndpoint, size: EngineSize) -> Iterator[str]:
    if size.sequences_max is not None and engine.slots > size.sequences_max:
        yield (
            f"slots is {engine.slots}, but the engine runs at most {size.sequences_max} sequences at a time"
            f" ({size.source}): what is beyond would wait inside it, unseen, and its stops too"
        )
    if size.tokens_max is not None and engine.tokens_max > size.tokens_max:
        yield (
            f"tokens_max is {engine.tokens_max}, but a sequence of this engine ends at {size.tokens_max} tokens"
            f" ({size.source}): longer answers would be cut"
        )
    if size.prompt_tokens_max is not None and engine.tokens_max - 1 > size.prompt_tokens_max:
        yield (
            f"tokens_max is {engine.tokens_max}, but this engine's prompts have at most {size.prompt_tokens_max} tokens"
            f" ({size.source}), and what is resumed sends prompt and answer again: build it with max_input_len"
            f" {engine.tokens_max - 1}, or set tokens_max to {size.prompt_tokens_max + 1}"
        )


def size_warnings(engine: EngineEndpoint, sizes: Sequence[EngineSize]) -> list[str]:
    """Return what works, and is probably not meant."""
    found = []
    most = min((each.sequences_max for each in sizes if each.sequences_max is not None), default=0)
    if engine.slots < FAR_BELOW * most:
        found.append(
            f"slots is {engine.slots} of the {most} sequences that the engine runs at a time: the others stay empty,"
            " unless they belong to other sidecars"
        )
    found += [
        f"the engine was built without use_paged_context_fmha ({size.source}): it reuses no KV blocks, so a stopped"
        " item is computed again as a whole, and a long prompt holds up everybody"
        for size in sizes
        if size.reuses is False
    ]
    return found


def kv_sequences(engine: EngineEndpoint, sizes: Sequence[EngineSize]) -> tuple[int, int] | None:
    """(KV tokens, sequences of full length that fit), by the first source that knows; None if none does."""
    tokens = engine.kv_tokens or next((each.kv_tokens for each in sizes if each.kv_tokens), 0)
    return (tokens, tokens // engine.tokens_max) if tokens else None
