"""A decoder-only transformer in PyTorch over paged KV, for any NVIDIA GPU: what an iteration of a real model costs.

Every new token of an iteration is a row of its own, a prompt's too: it has the blocks of its sequence and its own
length. So an iteration has one size, its number of tokens, and a CUDA graph per bucket of sizes serves all of them;
without graphs an iteration with prompt tokens is never under 41 ms on an H100 (measured: the launches).

Sums are made in bfloat16 with float32 accumulation and depend on who shares an iteration, so a resumed answer is as
exact as the engine is with itself. On the CPU it computes in float32, with the same code and plain attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional

from engine.transformer import FlatBatch, Floats, Ints

Tensor: TypeAlias = Any

BUCKETS = (
    *(1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512, 640, 768),
    *(1024, 1536, 2048),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchLayer:
    """The weights of one layer; a matrix has a row per output, as PyTorch wants it."""

    attention_gain: Tensor
    ffn_gain: Tensor
    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchWeights:
    """A whole model, on its device."""

    heads: int
    kv_heads: int
    epsilon: float
    embedding: Tensor
    head: Tensor
    gain: Tensor
    layers: list[TorchLayer]
    turns: tuple[Tensor, Tensor]  # RoPE: cosine and sine of each position, (positions, head_dim / 2)
    places: Tensor | None = None  # a vector per position, which the toy adds to its embeddings


@dataclass(slots=True, eq=False)
class TorchTransformer:
    """Weights and KV cache of one model, behind the same `logits` as the CPU engine's models."""

    weights: TorchWeights
    device: str
    blocks: int
    block_tokens: int
    columns: Tensor | None  # the ids whose logits are wanted; None = all
    attend: Callable[..., Tensor]
    _caches: list[tuple[Tensor, Tensor]] = field(init=False)  # keys and values of each layer
    # Per bucket a CUDA graph's inputs (see `_rows`), its replay, and its logits.
    _graphs: dict[int, tuple[Tensor, Tensor, Callable[[], None], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cos = self.weights.turns[0]
        # One block more than the batcher knows of: rows that only fill a bucket write there.
        size = ((self.blocks + 1) * self.block_tokens, self.weights.kv_heads, 2 * cos.shape[1])
        empty = partial(torch.zeros, size, device=self.device, dtype=cos.dtype)
        self._caches = [(empty(), empty()) for _ in self.weights.layers]

    @property
    def weight_bytes(self) -> int:
        layers = ((each.qkv, each.out, each.gate_up, each.down) for each in self.weights.layers)
        return sum(each.numel() * each.element_size() for each in (self.weights.head, *chain(*layers)))

    def copy_block(self, source: int, target: int) -> None:
        """Make block `target` hold what `source` holds."""
        size = self.block_tokens
        with torch.inference_mode():
            for cache in chain(*self._caches):
                cache[target * size : (target + 1) * size] = cache[source * size : (source + 1) * size]

    def forget(self, row: str) -> None:
        """Nothing is kept by row: all is in the blocks."""

    def logits(self, batch: FlatBatch) -> Floats:
        """Compute the new tokens of `batch` into the cache; the logits of its wanted places."""
        numbers, tables = map(torch.from_numpy, self._rows(batch))
        with torch.inference_mode():
            if numbers.shape[1] in self._graphs:
                graph_numbers, graph_tables, replay, found = self._graphs[numbers.shape[1]]
                graph_numbers.copy_(numbers.pin_memory(), non_blocking=True)
                graph_tables[:, : tables.shape[1]].copy_(tables.pin_memory(), non_blocking=True)
                replay()
            else:  # a CPU
                found = self._forward(numbers.to(self.device), tables.to(self.device))
            wanted: Floats = found[torch.from_numpy(batch.wanted).to(self.device)].cpu().numpy()
        return wanted

    def capture(self, tokens_most: int, tokens_max: int) -> None:
        """Capture a graph for each bucket up to `tokens_most`, for sequences of `tokens_max`; nothing on a CPU."""
        if self.device == "cpu":
            return
        pool, side = None, torch.cuda.Stream()
        with torch.inference_mode():
            for rows in sorted({each for each in BUCKETS if each < tokens_most} | {tokens_most}):
                numbers, tables = map(torch.from_numpy, self._spare(rows, -(-tokens_max // self.block_tokens)))
                inputs = numbers.to(self.device), tables.to(self.device)
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):  # CUDA wants two runs outside of any graph: they compile and allocate
                    self._forward(*inputs)
                    self._forward(*inputs)
                torch.cuda.current_stream().wait_stream(side)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    logits = self._forward(*inputs)
                pool = pool or graph.pool()
                self._graphs[rows] = (*inputs, graph.replay, logits)
            torch.cuda.synchronize()

    def _spare(self, rows: int, columns: int) -> tuple[Ints, Any]:
        """Return the numbers and tables of rows that all write into the spare block."""
        numbers = np.zeros((4, rows), np.int64)
        numbers[2], numbers[3] = self.blocks * self.block_tokens, 1
        return numbers, np.full((rows, columns), self.blocks, np.int32)

    def _rows(self, batch: FlatBatch) -> tuple[Ints, Any]:
        """Return a row for each new token: id, position, place in the cache, length; and the blocks of its sequence."""
        tokens = len(batch.ids)
        rows = min((each for each in self._graphs if each >= tokens), default=tokens)
        lengths = [len(table) for table in batch.tables] + [len(chunk.table) for chunk in batch.chunks]
        numbers, tables = self._spare(rows, max(lengths))
        for row, table in enumerate(batch.tables):
            tables[row, : len(table)] = table
        for chunk in batch.chunks:
            tables[chunk.begin : chunk.begin + chunk.tokens, : len(chunk.table)] = chunk.table
        numbers[0, :tokens] = batch.ids % len(self.weights.embedding)  # the toy's ids may be more than a model's rows
        numbers[1, :tokens], numbers[2, :tokens] = batch.positions, batch.slots
        numbers[3, :tokens] = batch.positions + 1
        return numbers, tables

    def _forward(self, numbers: Tensor, tables: Tensor) -> Tensor:
        """Return the logits of every row in float32."""
        weights, (ids, positions, places) = self.weights, numbers[:3]
        lengths, turned_heads = numbers[3].to(torch.int32), weights.heads + weights.kv_heads
        states = functional.embedding(ids, weights.embedding)
        if weights.places is not None:
            states = states + weights.places[positions]
        cos, sin = (each[positions][:, None] for each in weights.turns)
        for layer, (keys, values) in zip(weights.layers, self._caches, strict=True):
            qkv = functional.linear(self._norm(states, layer.attention_gain), layer.qkv)
            qkv = qkv.view(len(ids), turned_heads + weights.kv_heads, keys.shape[-1])
            turned = rotated(qkv[:, :turned_heads], cos, sin)
            keys.index_copy_(0, places, turned[:, weights.heads :])
            values.index_copy_(0, places, qkv[:, turned_heads:])
            queries = turned[:, : weights.heads].contiguous()
            mixed = self.attend(queries, keys, values, tables, lengths, self.block_tokens)
            states = states + functional.linear(mixed.reshape(len(ids), -1), layer.out)
            gate, up = functional.linear(self._norm(states, layer.ffn_gain), layer.gate_up).chunk(2, -1)
            states = states + functional.linear(functional.silu(gate) * up, layer.down)
        logits = functional.linear(self._norm(states, weights.gain), weights.head)
        return (logits if self.columns is None else logits.index_select(1, self.columns)).float()

    def _norm(self, states: Tensor, gain: Tensor) -> Tensor:
        if hasattr(functional, "rms_norm"):
            return functional.rms_norm(states, (states.shape[-1],), gain, self.weights.epsilon)
        return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.weights.epsilon) * gain  # before 2.4


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on (tokens, heads, head_dim): the first half against the second."""
    first, second = heads.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def plain_decode(q: Tensor, k: Tensor, v: Tensor, tables: Tensor, lengths: Tensor, block_tokens: int) -> Tensor:
    """Return what the kernel returns, by gathering: slower, and it runs on a CPU."""
    rows, heads, head_dim = q.shape
    kv_heads, most = k.shape[1], tables.shape[1] * block_tokens
    at = (tables[:, :, None].long() * block_tokens + torch.arange(block_tokens, device=q.device)).reshape(rows, most)
    grouped = q.reshape(rows, kv_heads, heads // kv_heads, head_dim)
    scores = torch.einsum("rhgd,rthd->rhgt", grouped, k[at]) / math.sqrt(head_dim)
    outside = torch.arange(most, device=q.device) >= lengths[:, None, None, None]
    shares = scores.masked_fill(outside, float("-inf")).softmax(-1)
    return torch.einsum("rhgt,rthd->rhgd", shares, v[at]).reshape(rows, heads, head_dim)
