"""What one call asks of an engine and what the engine answers, whichever engine is behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.sampling import EngineSampling
from sidecar.inflight.batch import End
from sidecar.inflight.blocks import RETENTION_DEFAULT, Ids, Retention


class UnsupportedError(ValueError):
    """The call asks for something that this engine does not do. The message names the tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCall:
    """One request to the engine model, read from its tensors."""

    input_ids: Ids
    output_tokens_max: int
    streaming: bool = False
    exclude_input: bool = False
    sequences: int = 1
    sampling: EngineSampling = field(default_factory=EngineSampling)
    end_id: int | None = None
    stop_words: tuple[Ids, ...] = ()
    bad_words: tuple[Ids, ...] = ()
    embedding_bias: tuple[float, ...] = ()
    retention: Retention = RETENTION_DEFAULT
    cache_salt: str | None = None  # calls of another salt find none of this one's KV blocks; only engine = llmapi
    returns: frozenset[str] = frozenset()  # the output tensors that it asked for by return_*


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What return_perf_metrics gives for one sequence. Times in ns of the engine's steady clock, 0 = never came."""

    new_blocks: int = 0
    reused_blocks: int = 0
    total_blocks: int = 0
    computed_tokens: int = 0  # of the prompt: what was not found in the cache
    arrival_ns: int = 0
    first_scheduled_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPart:
    """One response: new tokens of one sequence when streaming, all of them when not."""

    ids: Ids  # without the prompt
    sequence: int = 0
    end: End | None = None  # set on the last part of the sequence
    final: bool = False  # the last part of the whole call
    generated_tokens: int = 0  # of the sequence so far
    figures: Figures | None = None  # on the last part of the sequence
    error: str | None = None  # the call failed; the part is final and has nothing else
    refused: bool = False  # it failed of what the caller asked for: the same call would fail again


Deliver = Callable[[OutputPart], None]
