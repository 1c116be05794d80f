"""How long one iteration of an engine takes, by name: additive profiles here, measured ones beside (`measured.py`).

An additive profile is `o + c · rows + p · prefill tokens`. In decode `o` is the time to read the weights, which is paid
for one row as for sixty-four; that is why backfill is nearly free. The additive profiles are round figures, two for
A100 80 GB cards with fp16 weights: assumptions, not measurements. They stay for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Protocol

from sidecar.inflight.batch import Iteration
from sidecar.inflight.batcher import Batcher
from sidecar.inflight.measured import MeasuredProfile, measured_profile


class IterationTimes(Protocol):
    """What a simulated or paced engine needs of a profile."""

    @property
    def name(self) -> str: ...
    @property
    def kv_tokens_max(self) -> int: ...  # KV cache that fits beside the weights
    @property
    def overhead_ms(self) -> float: ...  # an iteration of one row, without its context
    @property
    def decode_row_ms(self) -> float: ...  # one row more, roughly
    @property
    def prefill_token_ms(self) -> float: ...  # one prompt token more, roughly
    @property
    def counts_context(self) -> bool: ...  # False: `iteration_s` does not look at its last two arguments
    def iteration_s(
        self, decode_rows: int, prefill_tokens: int, context_tokens: float = 0.0, prompt_pairs: float = 0.0, /
    ) -> float:
        """Return the seconds of an iteration that decodes so many rows and computes so many prompt tokens.

        `context_tokens` are those that the decoding rows read, all rows together. `prompt_pairs` are those of a prompt
        token and a token before it.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The cost of one iteration, in milliseconds, and the KV cache that fits beside the weights, in tokens."""

    name: str
    overhead_ms: float
    decode_row_ms: float
    prefill_token_ms: float
    kv_tokens_max: int = 450_000

    def __post_init__(self) -> None:
        if min(self.overhead_ms, self.decode_row_ms, self.prefill_token_ms) < 0 or self.kv_tokens_max < 1:
            raise ValueError(f"a profile needs costs >= 0 and kv_tokens_max >= 1: {self}")

    @property
    def counts_context(self) -> bool:
        """An additive profile has no term for what a row reads."""
        return False

    def iteration_s(
        self, decode_rows: int, prefill_tokens: int, _context: float = 0.0, _pairs: float = 0.0, /
    ) -> float:
        """Return the seconds of an iteration of `decode_rows` rows, with `prefill_tokens` prompt tokens beside them."""
        return (self.overhead_ms + self.decode_row_ms * decode_rows + self.prefill_token_ms * prefill_tokens) / 1000


def prompt_pairs(step: Iteration) -> float:
    """Return how many pairs of a prompt token and a token before it (or itself) the iteration attends to."""
    return sum(chunk.tokens * (chunk.begin + chunk.tokens / 2) for chunk in step.chunks)


def context_tokens(batcher: Batcher, step: Iteration) -> int:
    """Return how many tokens the decoding rows of `step` read from the KV cache."""
    return sum(len(row.request.prompt_ids) + batcher.generated_tokens(row) for row in step.decoding)


def step_s(times: IterationTimes, batcher: Batcher, step: Iteration) -> float:
    """Return the seconds that `step` takes, which `batcher` has planned and not finished."""
    rows, tokens = len(step.decoding), step.prefill_tokens
    if not times.counts_context:
        return times.iteration_s(rows, tokens)
    return times.iteration_s(rows, tokens, context_tokens(batcher, step), prompt_pairs(step))


ADDITIVE = (
    # 8B: 16 GB of weights on one card leave some 56 GB, at 128 KiB of KV per token.
    Profile(name="8b-a100", overhead_ms=9.0, decode_row_ms=0.05, prefill_token_ms=0.08),
    # 70B over four cards: 35 GB of weights each leave some 36 GB each, at 80 KiB of KV per token and card.
    Profile(name="70b-tp4-a100", overhead_ms=22.0, decode_row_ms=0.15, prefill_token_ms=0.16),
    # Qwen2.5-1.5B on an H200 under vLLM, from the time of a published batch: 5,500 tokens/s with 32 rows.
    Profile(name="1.5b-h200", overhead_ms=5.2, decode_row_ms=0.018, prefill_token_ms=0.01),
)
MEASURED = (
    "70b-tp4-a100-measured",
    "70b-tp8-a100-measured",
    "8b-a100-measured",
    "70b-tp4-h100-measured",
    "8b-h100-measured",
)


def _carried(name: str) -> MeasuredProfile:
    """Return the measured profile whose file lies in `profiles/`."""
    file = resources.files(__package__).joinpath("profiles").joinpath(f"{name}.json")
    return measured_profile(file.read_text(encoding="utf-8"))


PROFILES: dict[str, IterationTimes] = {each.name: each for each in ADDITIVE} | {
    name: _carried(name) for name in MEASURED
}


def profile_named(name: str) -> IterationTimes:
    """Return the profile `name`. Raises ValueError with the known names."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    return PROFILES[name]
