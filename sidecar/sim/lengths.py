"""How long prompts and answers are: lognormal token counts for each lane, and the mixes that the workloads use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log

import numpy as np
from numpy.random import Generator

Z99 = 2.3263478740408408  # the 99th percentile of the standard normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLengths:
    """A lognormal distribution of token counts, given by two percentiles and cut off at `at_most`."""

    p50: int
    p99: int
    at_most: int

    def draw(self, rng: Generator, count: int) -> list[int]:
        """`count` lengths, each in 1..at_most."""
        sigma = log(self.p99 / self.p50) / Z99
        tokens = np.rint(self.p50 * np.exp(sigma * rng.standard_normal(count)))
        return [int(each) for each in np.clip(tokens, 1, self.at_most)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The lengths of both lanes."""

    online_prompt: TokenLengths
    online_output: TokenLengths
    offline_prompt: TokenLengths
    offline_output: TokenLengths

    @property
    def tokens_max(self) -> int:
        """The longest sequence of either lane, rounded up to a power of two."""
        online = self.online_prompt.at_most + self.online_output.at_most
        offline = self.offline_prompt.at_most + self.offline_output.at_most
        return 1 << (max(online, offline) - 1).bit_length()


# Toy model behind the measured origin: online prompt p50 300 / p99 1,200, output 4 / 30; offline prompt 400 / 1,500,
# output 120 / 890 (the origin's own percentiles). Context 4K: prompts are cut at 3,072, items declare max_tokens 1,024.
TOY = Mix(
    online_prompt=TokenLengths(p50=300, p99=1200, at_most=3072),
    online_output=TokenLengths(p50=4, p99=30, at_most=128),
    offline_prompt=TokenLengths(p50=400, p99=1500, at_most=3072),
    offline_output=TokenLengths(p50=120, p99=890, at_most=1024),
)
# The Azure LLM inference trace of 2023 (Patel et al., Splitwise, ISCA 2024): its conversations have 1,020 tokens in and
# 129 out at the median, its requests for code 1,500 and 13.
CONVERSATION = replace(
    TOY,
    online_prompt=TokenLengths(p50=1020, p99=3800, at_most=4000),
    online_output=TokenLengths(p50=129, p99=650, at_most=1000),
)
CODE = replace(
    TOY,
    online_prompt=TokenLengths(p50=1500, p99=6500, at_most=7000),
    online_output=TokenLengths(p50=13, p99=240, at_most=512),
)
# Documents to enrich: long prompts, a few words each. Labels: a word or two.
ENRICH = replace(
    TOY,
    offline_prompt=TokenLengths(p50=8000, p99=12_000, at_most=15_000),
    offline_output=TokenLengths(p50=30, p99=100, at_most=128),
)
LABELS = replace(TOY, offline_output=TokenLengths(p50=5, p99=10, at_most=16))
# llm-d-async-rs, bench/resume-demo/eviction: answers of exactly 256 tokens beside items of exactly 1,500. How long its
# prompts are is not published: 200 tokens are our choice.
EVICTION = Mix(
    online_prompt=TokenLengths(p50=200, p99=300, at_most=400),
    online_output=TokenLengths(p50=256, p99=256, at_most=256),
    offline_prompt=TokenLengths(p50=200, p99=300, at_most=400),
    offline_output=TokenLengths(p50=1500, p99=1500, at_most=1500),
)
