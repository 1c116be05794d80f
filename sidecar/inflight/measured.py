"""Iteration times as they were measured on a GPU: a curve over all tokens of the iteration, and attention on top.

A GPU computes the rows and the prompt tokens of an iteration together, in tiles. So the time of the linear layers is
nearly flat up to some 64 tokens and then climbs in steps at tile boundaries; neither a line nor a plain roofline has
that shape. The points of the measurement are kept as they are and joined by straight lines: where the table has a
step (64 and 72 tokens), the profile has one.

    ms = curve(rows + prompt tokens) + iteration_ms + token_ms · (rows + prompt tokens) + row_ms · rows
         + context_token_ms · KV tokens that the rows read + prompt_token_ms · prompt tokens
         + prompt_pair_ms · pairs of a prompt token and a token before it

What is modelled, and not measured, is said in the file (`attention_source`):

- a decoding row reads its KV once: bytes per token ÷ tensor-parallel cards ÷ bandwidth (1.4 TB/s on an A100);
- a prompt token attends to those before it: 4 · layers · width FLOP per pair ÷ cards ÷ 60 % of the arithmetic peak;
- `iteration_ms` holds the launches (10 µs a layer), and with `token_ms` the all-reduces between cards.

A file has the form that `scripts/gpu_check` writes: `name`, `source`, `gpu`, `points` of [tokens, ms], and `attention`
with any of the terms above; further fields are for the reader.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import Any

TERMS = ("iteration_ms", "token_ms", "row_ms", "context_token_ms", "prompt_token_ms", "prompt_pair_ms")
KV_TOKENS_MAX = 450_000  # where a file names none
POINTS_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredProfile:
    """Iteration times of one engine. `points` are (tokens, ms), by tokens; the costs of attention are in ms."""

    name: str
    source: str
    gpu: str
    points: tuple[tuple[int, float], ...]
    kv_tokens_max: int = KV_TOKENS_MAX
    iteration_ms: float = 0.0
    token_ms: float = 0.0
    row_ms: float = 0.0
    context_token_ms: float = 0.0
    prompt_token_ms: float = 0.0
    prompt_pair_ms: float = 0.0
    _tokens: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.points) < 2 or any(one[0] >= other[0] for one, other in pairwise(self.points)):
            raise ValueError(f"profile {self.name!r}: `points` must be two or more, by rising tokens")
        costs = [getattr(self, term) for term in TERMS]
        if self.points[0][0] < 0 or min(ms for _, ms in self.points) <= 0 or min(costs) < 0 or self.kv_tokens_max < 1:
            raise ValueError(f"profile {self.name!r} needs times > 0, costs >= 0 and kv_tokens_max >= 1")
        object.__setattr__(self, "_tokens", tuple(tokens for tokens, _ in self.points))

    @property
    def counts_context(self) -> bool:
        """True if it matters how much the rows read."""
        return self.context_token_ms > 0 or self.prompt_pair_ms > 0

    @property
    def overhead_ms(self) -> float:
        """An iteration of one row, without its context."""
        return self._shared_ms(1) + self.iteration_ms + self.row_ms

    @property
    def decode_row_ms(self) -> float:
        """The mean cost of a row among 64, without its context."""
        return max(0.0, self._shared_ms(64) - self._shared_ms(1)) / 63 + self.row_ms

    @property
    def prefill_token_ms(self) -> float:
        """The mean cost of a prompt token between 64 and 512 in an iteration."""
        return max(0.0, self._shared_ms(512) - self._shared_ms(64)) / 448 + self.prompt_token_ms

    def iteration_s(
        self, decode_rows: int, prefill_tokens: int, context_tokens: float = 0.0, prompt_pairs: float = 0.0, /
    ) -> float:
        """Return the seconds of one iteration; see the module for the formula."""
        return (
            self._shared_ms(decode_rows + prefill_tokens)
            + self.iteration_ms
            + self.row_ms * decode_rows
            + self.context_token_ms * context_tokens
            + self.prompt_token_ms * prefill_tokens
            + self.prompt_pair_ms * prompt_pairs
        ) / 1000

    def _shared_ms(self, tokens: int) -> float:
        """What all tokens of the iteration share. Flat below the first point; the last slope goes on for ever."""
        if tokens <= self._tokens[0]:
            return self.points[0][1] + self.token_ms * tokens
        right = min(bisect_right(self._tokens, tokens), len(self._tokens) - 1)
        (left_tokens, left_ms), (right_tokens, right_ms) = self.points[right - 1], self.points[right]
        slope = (right_ms - left_ms) / (right_tokens - left_tokens)
        if tokens > right_tokens:
            slope = max(0.0, slope)
        return left_ms + slope * (tokens - left_tokens) + self.token_ms * tokens


def measured_profile(text: str) -> MeasuredProfile:
    """Return the profile that a JSON file spells. Raises ValueError, with what is wrong, for any other text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("a profile is a JSON object")
    attention = value.get("attention", {})
    if not isinstance(attention, dict) or (unknown := attention.keys() - set(TERMS)):
        named = f", not {', '.join(sorted(unknown))}" if isinstance(attention, dict) else ""
        raise ValueError(f"`attention` has the terms {', '.join(TERMS)}{named}")
    return MeasuredProfile(
        name=_text(value, "name"),
        source=_text(value, "source"),
        gpu=_text(value, "gpu"),
        points=tuple(_points(value.get("points"))),
        kv_tokens_max=int(_number(value.get("kv_tokens_max", KV_TOKENS_MAX), "kv_tokens_max")),
        **{term: _number(attention.get(term, 0.0), term) for term in TERMS},
    )


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or not found:
        raise ValueError(f"`{name}` must be a text")
    return found


def _points(value: object) -> Sequence[tuple[int, float]]:
    if not isinstance(value, list) or len(value) > POINTS_MAX:
        raise ValueError(f"`points` must be a list of at most {POINTS_MAX} pairs [tokens, ms]")
    found = []
    for each in value:
        if not isinstance(each, list) or len(each) != 2 or not isinstance(each[0], int):
            raise ValueError(f"`points` holds pairs [tokens, ms], not {str(each)[:60]}")
        found.append((each[0], _number(each[1], "points")))
    return found


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"`{name}` must hold numbers, not {str(value)[:60]}")
    return float(value)
