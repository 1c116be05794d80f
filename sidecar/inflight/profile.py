"""How long one iteration of an engine takes: `o + c · rows + p · prefill tokens`.

In decode `o` is the time to read the weights, which is paid for one row as for sixty-four; that is why backfill is
nearly free. The two named profiles are round figures for A100 80 GB cards with fp16 weights. They are assumptions, not
measurements of ours: measure your own engine and name it.
"""

from __future__ import annotations

from dataclasses import dataclass


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

    def iteration_s(self, decode_rows: int, prefill_tokens: int) -> float:
        """Seconds of an iteration that decodes `decode_rows` sequences and prefills `prefill_tokens` beside them."""
        return (self.overhead_ms + self.decode_row_ms * decode_rows + self.prefill_token_ms * prefill_tokens) / 1000


PROFILES = {
    profile.name: profile
    for profile in (
        # 8B: 16 GB of weights on one card leave some 56 GB, at 128 KiB of KV per token.
        Profile(name="8b-a100", overhead_ms=9.0, decode_row_ms=0.05, prefill_token_ms=0.08),
        # 70B over four cards: 35 GB of weights each leave some 36 GB each, at 80 KiB of KV per token and card.
        Profile(name="70b-tp4-a100", overhead_ms=22.0, decode_row_ms=0.15, prefill_token_ms=0.16),
    )
}


def profile_named(name: str) -> Profile:
    """The profile `name`. Raises ValueError with the known names."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    return PROFILES[name]
