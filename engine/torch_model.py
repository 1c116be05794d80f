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
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional

from engine.transformer import FlatBatch, Floats, Ints

Tensor: TypeAlias = Any
Attend: TypeAlias = Callable[..., Tensor]

BUCKETS = (
    *(1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512, 640, 768),
    *(1024, 1536, 2048),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchShape:
    """The sizes of a model. `vocab` are the rows of its output layer."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_base: float = 500_000.0
    epsilon: float = 1e-5


SHAPES = {
    "8b": TorchShape(layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128_256),
    # What one of four tensor-parallel GPUs computes of a 70B. The two all-reduces of each layer are missing.
    "70b-tp4-shard": TorchShape(layers=80, width=8192, heads=16, kv_heads=2, head_dim=128, ffn=7168, vocab=32_064),
}


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
    """A whole model."""

    shape: TorchShape
    embedding: Tensor
    head: Tensor
    gain: Tensor
    layers: list[TorchLayer]
    places: Tensor | None = None  # a vector per position, which the toy adds to its embeddings

    @property
    def nbytes(self) -> int:
        each = [getattr(layer, name) for layer in self.layers for name in ("qkv", "out", "gate_up", "down")]
        return sum(matrix.numel() * matrix.element_size() for matrix in (*each, self.head))


def random_weights(shape: TorchShape, device: str, seed: int) -> TorchWeights:
    """Return weights that make no sense and take a real model's time."""
    draw = torch.Generator(device=device)
    draw.manual_seed(seed)
    dtype = dtype_on(device)

    def matrix(rows: int, columns: int) -> Tensor:
        empty = torch.empty(rows, columns, device=device, dtype=dtype)
        return empty.normal_(0, 1 / math.sqrt(columns), generator=draw)

    ones = torch.ones(shape.width, device=device, dtype=dtype)
    layers = [
        TorchLayer(
            attention_gain=ones,
            ffn_gain=ones,
            qkv=matrix((shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.width),
            out=matrix(shape.width, shape.heads * shape.head_dim),
            gate_up=matrix(2 * shape.ffn, shape.width),
            down=matrix(shape.width, shape.ffn),
        )
        for _ in range(shape.layers)
    ]
    embedding, head = matrix(shape.vocab, shape.width), matrix(shape.vocab, shape.width)
    return TorchWeights(shape=shape, embedding=embedding, head=head, gain=ones, layers=layers)


def dtype_on(device: str) -> Any:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.float32 if device == "cpu" else torch.bfloat16


@dataclass(slots=True, eq=False)
class CapturedGraph:
    """A CUDA graph of one bucket, with the tensors that it reads and writes."""

    numbers: Tensor  # ids, positions, places in the cache, lengths: a column per row
    tables: Tensor
    replay: Callable[[], None]
    logits: Tensor


@dataclass(slots=True, eq=False)
class TorchTransformer:
    """Weights and KV cache of one model, behind the same `logits` as the CPU engine's models."""

    weights: TorchWeights
    device: str
    blocks: int
    block_tokens: int
    tokens_max: int  # of one sequence
    columns: Tensor | None  # the ids whose logits are wanted; None = all
    attend: Attend
    _keys: list[Tensor] = field(init=False)
    _values: list[Tensor] = field(init=False)
    _turns: tuple[Tensor, Tensor] = field(init=False)
    _graphs: dict[int, CapturedGraph] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, dtype = self.weights.shape, dtype_on(self.device)
        # One block more than the batcher knows of: rows that only fill a bucket write there.
        size = ((self.blocks + 1) * self.block_tokens, shape.kv_heads, shape.head_dim)
        self._keys = [torch.zeros(size, device=self.device, dtype=dtype) for _ in self.weights.layers]
        self._values = [torch.zeros(size, device=self.device, dtype=dtype) for _ in self.weights.layers]
        half = torch.arange(shape.head_dim // 2, device=self.device, dtype=torch.float32) / (shape.head_dim // 2)
        places = torch.arange(self.tokens_max, device=self.device, dtype=torch.float32)
        angles = places[:, None] * (1 / shape.rope_base**half)
        self._turns = angles.cos().to(dtype), angles.sin().to(dtype)

    @property
    def weight_bytes(self) -> int:
        return self.weights.nbytes

    def copy_block(self, source: int, target: int) -> None:
        """Make block `target` hold what `source` holds."""
        size = self.block_tokens
        with torch.inference_mode():
            for cache in (*self._keys, *self._values):
                cache[target * size : (target + 1) * size] = cache[source * size : (source + 1) * size]

    def forget(self, row: str) -> None:
        """Nothing is kept by row: all is in the blocks."""

    def logits(self, batch: FlatBatch) -> Floats:
        """Compute the new tokens of `batch` into the cache; the logits of its wanted places."""
        with torch.inference_mode():
            numbers, tables = self._rows(batch)
            found = (
                self._replayed(numbers, tables) if self._graphs else self._forward(*map(self._sent, (numbers, tables)))
            )
            wanted: Floats = np.array(found.cpu())[batch.wanted]
        return wanted

    def capture(self, tokens_most: int) -> None:
        """Compile the kernels and capture a graph for each bucket up to `tokens_most`; nothing on a CPU."""
        if self.device == "cpu":
            return
        pool = None
        with torch.inference_mode():
            for rows in sorted({each for each in BUCKETS if each < tokens_most} | {tokens_most}):
                graph, captured = torch.cuda.CUDAGraph(), self._example(rows)
                self.on_a_side_stream(partial(self._forward, *captured))
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    logits = self._forward(*captured)
                pool = pool or graph.pool()
                self._graphs[rows] = CapturedGraph(*captured, graph.replay, logits)
            torch.cuda.synchronize()

    def _example(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return the inputs of an iteration whose rows all write into the spare block."""
        numbers = torch.zeros(4, rows, dtype=torch.long, device=self.device)
        numbers[2], numbers[3] = self.blocks * self.block_tokens, 1
        size = (rows, -(-self.tokens_max // self.block_tokens))
        return numbers, torch.full(size, self.blocks, dtype=torch.int32, device=self.device)

    def on_a_side_stream(self, work: Callable[[], object]) -> None:
        """Run `work` twice outside of any graph, as CUDA wants it before a capture: it compiles and allocates."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
            work()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

    def _rows(self, batch: FlatBatch) -> tuple[Ints, Any]:
        """Return a row for each new token: its numbers, and the blocks of its sequence."""
        tokens = len(batch.ids)
        rows = min((each for each in self._graphs if each >= tokens), default=tokens)
        lengths = [len(table) for table in batch.tables] + [len(chunk.table) for chunk in batch.chunks]
        tables = np.full((rows, max(lengths)), self.blocks, np.int32)
        for row, table in enumerate(batch.tables):
            tables[row, : len(table)] = table
        for chunk in batch.chunks:
            tables[chunk.begin : chunk.begin + chunk.tokens, : len(chunk.table)] = chunk.table
        numbers = np.zeros((4, rows), np.int64)
        numbers[2], numbers[3] = self.blocks * self.block_tokens, 1
        numbers[0, :tokens] = batch.ids % len(self.weights.embedding)  # the toy's ids may be more than a model's rows
        numbers[1, :tokens], numbers[2, :tokens] = batch.positions, batch.slots
        numbers[3, :tokens] = batch.positions + 1
        return numbers, tables

    def _sent(self, values: Any) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor if self.device == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _replayed(self, numbers: Ints, tables: Any) -> Tensor:
        graph = self._graphs[numbers.shape[1]]
        graph.numbers.copy_(torch.from_numpy(numbers).pin_memory(), non_blocking=True)
        graph.tables[:, : tables.shape[1]].copy_(torch.from_numpy(tables).pin_memory(), non_blocking=True)
        graph.replay()
        return graph.logits

    def _forward(self, numbers: Tensor, tables: Tensor) -> Tensor:
        """Return the logits of every row in float32."""
        weights, shape = self.weights, self.weights.shape
        ids, positions, places, lengths = numbers[0], numbers[1], numbers[2], numbers[3].to(torch.int32)
        states = functional.embedding(ids, weights.embedding)
        if weights.places is not None:
            states = states + weights.places[positions]
        turn = self._turns[0][positions][:, None], self._turns[1][positions][:, None]
        for layer, keys, values in zip(weights.layers, self._keys, self._values, strict=True):
            qkv = functional.linear(self._norm(states, layer.attention_gain), layer.qkv)
            qkv = qkv.view(len(ids), shape.heads + 2 * shape.kv_heads, shape.head_dim)
            turned = rotated(qkv[:, : shape.heads + shape.kv_heads], *turn)
            keys.index_copy_(0, places, turned[:, shape.heads :])
            values.index_copy_(0, places, qkv[:, shape.heads + shape.kv_heads :])
            queries = turned[:, : shape.heads].contiguous()
            mixed = self.attend(queries, keys, values, tables, lengths, self.block_tokens)
            states = states + functional.linear(mixed.reshape(len(ids), -1), layer.out)
            states = states + self._fed_forward(states, layer)
        logits = functional.linear(self._norm(states, weights.gain), weights.head)
        return (logits if self.columns is None else logits.index_select(1, self.columns)).float()

    def linear_layers(self, states: Tensor) -> Tensor:
        """Run only what all tokens share, the linear layers and norms: the part of an iteration that a curve shows."""
        shape = self.weights.shape
        for layer in self.weights.layers:
            qkv = functional.linear(self._norm(states, layer.attention_gain), layer.qkv)
            states = states + functional.linear(qkv[:, : shape.heads * shape.head_dim], layer.out)
            states = states + self._fed_forward(states, layer)
        return states

    def _fed_forward(self, states: Tensor, layer: TorchLayer) -> Tensor:
        gate, up = functional.linear(self._norm(states, layer.ffn_gain), layer.gate_up).chunk(2, -1)
        return functional.linear(functional.silu(gate) * up, layer.down)

    def _norm(self, states: Tensor, gain: Tensor) -> Tensor:
        epsilon = self.weights.shape.epsilon
        if hasattr(functional, "rms_norm"):
            return functional.rms_norm(states, (states.shape[-1],), gain, epsilon)
        return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + epsilon) * gain  # PyTorch before 2.4


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
