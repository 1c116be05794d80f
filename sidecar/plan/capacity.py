"""What fits, what it costs, and how many are needed: plain arithmetic, each formula with its source.

Memory: weights, then activations and graphs, then a share of the rest for the KV cache (TensorRT-LLM
docs/source/reference/memory.md). Time: one batch takes `o + c·b` ms, so that an item of it takes `o/b + c`: `o` is paid
once for all, which is what backfill lives on. An item is whatever one pass gives: a token of one sequence in decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

GIB = 2**30
MS_PER_HOUR = 3_600_000
OVERHEAD_GIB = 4.0  # activations, NCCL and CUDA graphs; assumed: the engine prints its own figure ([MemUsageChange])
KV_FRACTION = 0.9  # kv_cache_free_gpu_mem_fraction: of what is free beside weights and activations
WEIGHT_BITS = {"bf16": 16.0, "int8": 8.0, "int4": 4.5}  # int4: with the scales, and what stays in bf16 (AWQ, 128)
KV_BYTES = {"bf16": 2, "int8": 1, "fp8": 1}
SEQUENCES_MIN = 4  # of full length: with fewer there is no batch to share
DOUBLING_SAVES = 0.05  # of an item's time: below it a larger batch is not worth its latency
WARM = 1.5  # replicas kept warm, as a multiple of what the mean load needs


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What of a model takes memory."""

    name: str
    parameters: float
    layers: int
    kv_heads: int  # of grouped-query attention; without it as many as there are heads
    head_dim: int

    def __post_init__(self) -> None:
        if min(self.parameters, self.layers, self.kv_heads, self.head_dim) < 1:
            raise ValueError(f"a model needs sizes >= 1: {self}")

    def kv_token_bytes(self, kv: str = "bf16") -> int:
        """KV cache of one token over all GPUs. Keys and values, hence the 2."""
        return 2 * self.layers * self.kv_heads * self.head_dim * KV_BYTES[kv]

    def weight_bytes(self, weights: str = "bf16") -> float:
        """The weights in one of the types; a replica that starts cold reads all of them before anything runs."""
        return self.parameters * WEIGHT_BITS[weights] / 8


MODELS = {
    "70b": ModelSize(name="70b", parameters=70.6e9, layers=80, kv_heads=8, head_dim=128),  # Llama 3
    "8b": ModelSize(name="8b", parameters=8.03e9, layers=32, kv_heads=8, head_dim=128),  # Llama 3
    "7b": ModelSize(name="7b", parameters=7.0e9, layers=32, kv_heads=32, head_dim=128),  # Llama 2: no grouped queries
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """One replica: a model over `tp` GPUs of `gpu_gib` usable memory each."""

    model: ModelSize
    tp: int
    weights: str = "bf16"
    kv: str = "bf16"
    reuse: bool = True  # of KV blocks, which resumes and chunks of prompts need
    gpu_gib: float = 79.2  # of an A100 80 GB
    length: int = 16_384  # prompt + output of one sequence; the engine reserves it before a sequence starts
    kv_fraction: float = KV_FRACTION

    def __post_init__(self) -> None:
        if self.tp < 1 or self.length < 1 or not 0 < self.gpu_gib < float("inf"):
            sizes = f"{self.tp}, {self.length} and {self.gpu_gib:g}"
            raise ValueError(f"a plan needs tp >= 1, length >= 1 and gpu_gib > 0, not {sizes}")
        if self.kv != "bf16" and self.reuse:
            raise ValueError(
                f"a KV cache in {self.kv} has no paged context attention on an A100, so neither reuse of blocks nor"
                " chunked prompts: a stopped item is computed again as a whole. Plan for it with --without-reuse"
            )

    @property
    def weights_gpu_gib(self) -> float:
        """Weights on each GPU."""
        return self.model.weight_bytes(self.weights) / self.tp / GIB

    @property
    def kv_gpu_gib(self) -> float:
        """KV cache on each GPU; 0 if the weights leave no room."""
        return max(0.0, (self.gpu_gib - self.weights_gpu_gib - OVERHEAD_GIB) * self.kv_fraction)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cache holds. Beyond as many GPUs as KV heads, each further GPU holds copies."""
        per_gpu = self.model.kv_token_bytes(self.kv) / min(self.tp, self.model.kv_heads)
        return floor(self.kv_gpu_gib * GIB / per_gpu)

    @property
    def sequences(self) -> int:
        """Sequences of full length at a time (capacity rule GUARANTEED_NO_EVICT)."""
        return self.kv_tokens // self.length

    @property
    def refusal(self) -> str:
        """Why nobody should buy this; "" if there is no reason."""
        if self.kv_tokens == 0:
            return f"{self.weights_gpu_gib:.1f} GiB of weights leave no room for a KV cache in {self.gpu_gib:g} GiB"
        if self.sequences < SEQUENCES_MIN:
            return (
                f"only {self.sequences} sequences of {self.length:,} tokens fit beside"
                f" {self.weights_gpu_gib:.1f} GiB of weights: use more GPUs, smaller weights or shorter sequences"
            )
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """`T(b) = o + c·b`: what a batch of b takes, in ms."""

    o_ms: float
    c_ms: float

    def __post_init__(self) -> None:
        if not (0 <= self.o_ms < float("inf") and 0 < self.c_ms < float("inf")):
            raise ValueError(f"needs o >= 0 ms and c > 0 ms, not {self.o_ms:g} and {self.c_ms:g}")

    @classmethod
    def fitted(cls, points: Sequence[tuple[int, float]]) -> CostModel:
        """Through two measurements, (batch, ms) each. Raises ValueError if they cannot be of such a machine."""
        (b1, t1), (b2, t2) = points
        if b1 == b2:
            raise ValueError(f"two measurements of different batches are needed, not twice {b1}")
        c = (t2 - t1) / (b2 - b1)
        return cls(o_ms=t1 - c * b1, c_ms=c)

    def batch_ms(self, batch: int) -> float:
        """How long a batch takes."""
        return self.o_ms + self.c_ms * batch

    def item_ms(self, batch: int) -> float:
        """How long an item takes, as its share of the batch."""
        return self.o_ms / batch + self.c_ms

    def items_per_hour(self, batch: int) -> float:
        """Items of full batches in an hour."""
        return MS_PER_HOUR / self.item_ms(batch)

    def usd_per_million(self, batch: int, usd_per_hour: float, utilisation: float = 1.0) -> float:
        """What a million items cost. Idle hours are paid like busy ones."""
        return 1e6 * self.item_ms(batch) / MS_PER_HOUR * usd_per_hour / utilisation

    def batch_within_ms(self, budget_ms: float) -> int:
        """The largest batch that takes no longer; 0 if none does. For the head of the line, whoever arrives behind a
        batch waits for it: the budget is the share of the objective that the wait may take."""
        return max(0, floor((budget_ms - self.o_ms) / self.c_ms + 1e-9))  # a whole number, but for rounding

    def row(self, batch: int, usd_per_hour: float, first: tuple[int, float]) -> dict[str, float]:
        """All figures of one batch at this price, and against the first one's (batch, price)."""
        million = self.usd_per_million(batch, usd_per_hour)
        return {
            "batch": batch,
            "batch_ms": self.batch_ms(batch),
            "item_ms": self.item_ms(batch),
            "items_per_hour": self.items_per_hour(batch),
            "usd_per_hour": usd_per_hour,
            "usd_per_million": million,
            "times_items": self.item_ms(first[0]) / self.item_ms(batch),
            "times_cheaper": self.usd_per_million(*first) / million,
        }

    def enough(self, saves: float = DOUBLING_SAVES) -> int:
        """The batch from which on doubling saves less than this share of an item's time: o/2b < saves · (o/b + c)."""
        return floor((0.5 - saves) / saves * self.o_ms / self.c_ms + 1e-9) + 1


def replicas(
    users: int, tokens_per_s: float, stream_tokens_per_s: float, tpot_ms: float, cost: CostModel, sequences: int
) -> list[dict[str, Any]]:
    """Replicas for so many streaming users at a time, under both readings of a published rate per replica.

    If its streams share the rate, each needs `stream_tokens_per_s` of it: with the most streams, and with the least. If
    they run in flight, as many fit as the objective between two tokens allows, and as the KV cache holds. Raises
    ValueError if not one does.
    """
    shared, in_flight = tokens_per_s / stream_tokens_per_s, min(cost.batch_within_ms(tpot_ms), sequences)
    if min(users, shared) <= 0 or not in_flight:
        raise ValueError(f"{users} users at {tpot_ms:g} ms a token cannot be: T(1) is {cost.batch_ms(1):g} ms")
    counts = sorted({max(1, ceil(shared)), max(1, floor(shared))}, reverse=True)
    readings = [("its streams share the rate", each, 1000 * each / tokens_per_s) for each in counts]
    readings.append(("they run in flight", in_flight, cost.batch_ms(in_flight)))
    return [
        {"reading": reading, "streams": streams, "tpot_ms": tpot_ms, "replicas": ceil(users / streams)}
        for reading, streams, tpot_ms in readings
    ]


def warm(needed: int, peak_to_mean: float) -> int:
    """Replicas to keep warm, if the peak needs so many."""
    return ceil(needed / peak_to_mean * WARM)
