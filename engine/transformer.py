"""A decoder-only transformer in numpy over paged KV: RMSNorm, RoPE, grouped-query attention, SwiGLU.

One pass takes the new tokens of all rows together, one per decoding row and a chunk per prompt, so that each weight is
read once per iteration; only attention looks at the rows apart. Rows are padded to a multiple of four, one row too:
four are what the kernel multiplies at once, like the tile of a GPU. A matrix-vector product would serve a lone row
faster (measured: 3 times); this way an iteration costs `o + c · rows`, which is the property that matters here.

Weights, activations and KV are 8-bit integers, as in W8A8 with INT8 KV on an A100, carried in float32 for BLAS. Every
sum of products is then exact (below 2^24), in whatever order and batch it is made, so what a sequence says does not
depend on who shares its iterations, nor on where it was cut and resumed. With float weights 1 of 1,000 items in slices
of 16 differed from its whole (measured); the tie that decides a greedy token is a matter of rounding.

The weights come from a seed. Embeddings carry the class of a word, and the output layer prefers words whose class may
follow it; which word of the class it is comes from the whole context, through all layers. A vector per absolute place
is added beside RoPE: without it, greedy output of untrained weights soon runs in circles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.language import Language

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]

ROWS_TILE = 4
LEVELS = np.float32(127)  # the largest 8-bit integer; activations are scaled by row so that their largest is it
UNIT = np.float32(32)  # queries, keys and values, of about unit variance, are rounded to 1/32: ±4 fits
ATTENTION_ROWS = 16  # rows attended together: those of similar length, so that little padding is gathered
CLASS_WEIGHT = 16.0  # how much the grammar counts against the context; tried: below 8 the sentences fall apart
REPEAT_WEIGHT = 0.15  # for each further time that words.txt names a follower: small classes need it


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a model. `width` = heads · head_dim."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


PRESETS = {
    "tiny": ModelShape(layers=2, width=64, heads=4, kv_heads=2, ffn=128),  # unit tests
    "small": ModelShape(layers=4, width=256, heads=8, kv_heads=2, ffn=768),  # 16 MB: paced demos
    # 200 MB of weights, more than the last-level cache of most machines: a step is bound by memory, as on a GPU.
    "large": ModelShape(layers=8, width=768, heads=12, kv_heads=4, ffn=2048),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatChunk:
    """New prompt tokens of one sequence: places `begin` … in the flat batch, and its blocks up to their end."""

    begin: int
    tokens: int
    table: Ints
    row: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatBatch:
    """The new tokens of one iteration, flat: first one per decoding row, then the chunks."""

    ids: Ints
    positions: Ints
    slots: Ints  # where their keys and values go: block index · tokens per block + offset
    tables: list[Ints]  # of the decoding rows: their blocks, in order
    chunks: list[FlatChunk]
    wanted: Ints  # places whose next token is wanted
    rows: tuple[str, ...] = ()  # the decoding rows by name, for a model that keeps something by row


@dataclass(frozen=True, slots=True)
class Matrix:
    """Integers in float32, and what one of them is worth. Activations have a worth per row, weights one in all."""

    integers: Floats
    worth: Floats

    def __matmul__(self, other: Matrix) -> Floats:
        product: Floats = (self.integers @ other.integers) * (self.worth * other.worth)
        return product


@dataclass(frozen=True, slots=True)
class Layer:
    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    keys: NDArray[np.int8]  # (blocks, tokens per block, kv heads, head_dim)
    values: NDArray[np.int8]


class Transformer:
    """Weights and KV cache of one model."""

    def __init__(
        self, shape: ModelShape, language: Language, *, tokens_max: int, blocks: int, tokens_per_block: int, seed: int
    ) -> None:
        self.shape = shape
        self._size = tokens_per_block
        random = np.random.default_rng(seed)
        self.places = random.standard_normal((tokens_max, shape.width), np.float32)
        self.embedding = _embedding(random, shape.width, language)
        self.head = _head(random, self.embedding, language)
        cache = (blocks, tokens_per_block, shape.kv_heads, shape.head_dim)
        self.layers = [
            Layer(
                qkv=_matrix(random, shape.width, shape.width + 2 * shape.kv_heads * shape.head_dim),
                out=_matrix(random, shape.width, shape.width),
                gate_up=_matrix(random, shape.width, 2 * shape.ffn),
                down=_matrix(random, shape.ffn, shape.width),
                keys=np.zeros(cache, np.int8),  # zeros are pages that the system only gives when written to
                values=np.zeros(cache, np.int8),
            )
            for _ in range(shape.layers)
        ]
        half = shape.head_dim // 2
        angles = np.outer(np.arange(tokens_max), 10_000.0 ** (-np.arange(half) / half))  # RoPE, Su et al. 2021
        self._cos, self._sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    @property
    def weight_bytes(self) -> int:
        layers = [(each.qkv, each.out, each.gate_up, each.down) for each in self.layers]
        return sum(matrix.integers.nbytes for layer in layers for matrix in layer) + self.head.integers.nbytes

    def copy_block(self, source: int, target: int) -> None:
        """Make block `target` hold what `source` holds."""
        for layer in self.layers:
            layer.keys[target] = layer.keys[source]
            layer.values[target] = layer.values[source]

    def forget(self, row: str) -> None:
        """Nothing is kept by row: all is in the blocks."""

    def logits(self, batch: FlatBatch) -> Floats:
        """Compute the new tokens of `batch` into the cache; the logits of its wanted places over the readable ids."""
        tokens = len(batch.ids)
        states = np.zeros((-(-tokens // ROWS_TILE) * ROWS_TILE, self.shape.width), np.float32)
        states[:tokens] = self.embedding[batch.ids] + self.places[batch.positions]
        turn = self._cos[batch.positions, None], self._sin[batch.positions, None]
        groups = _groups(batch.tables)
        for layer in self.layers:
            states += _rounded(self._attention(layer, _norm(states), batch, groups, turn)) @ layer.out
            gate, up = np.split(_norm(states) @ layer.gate_up, 2, axis=1)
            states += _rounded(gate / (1 + np.exp(-gate)) * up) @ layer.down
        wanted = np.zeros((-(-len(batch.wanted) // ROWS_TILE) * ROWS_TILE, self.shape.width), np.float32)
        wanted[: len(batch.wanted)] = states[batch.wanted]
        return (_norm(wanted) @ self.head)[: len(batch.wanted)]

    def _attention(
        self,
        layer: Layer,
        states: Matrix,
        batch: FlatBatch,
        groups: list[tuple[Ints, Ints]],
        turn: tuple[Floats, Floats],
    ) -> Floats:
        shape, tokens = self.shape, len(batch.ids)
        qkv = (states @ layer.qkv)[:tokens].reshape(tokens, -1, shape.head_dim)
        queries = _in_units(_rotate(qkv[:, : shape.heads], *turn))
        keys = layer.keys.reshape(-1, shape.kv_heads, shape.head_dim)
        values = layer.values.reshape(-1, shape.kv_heads, shape.head_dim)
        keys[batch.slots] = _in_units(_rotate(qkv[:, shape.heads : shape.heads + shape.kv_heads], *turn))
        values[batch.slots] = _in_units(qkv[:, shape.heads + shape.kv_heads :])
        mixed = np.zeros((len(states.integers), shape.width), np.float32)
        for rows, tables in groups:
            mixed[rows] = self._attend(layer, queries[rows, None], tables, batch.positions[rows, None])[:, 0]
        for chunk in batch.chunks:
            span = slice(chunk.begin, chunk.begin + chunk.tokens)
            mixed[span] = self._attend(layer, queries[None, span], chunk.table[None], batch.positions[None, span])[0]
        return mixed

    def _attend(self, layer: Layer, queries: Floats, tables: Ints, positions: Ints) -> Floats:
        """Attention of (rows, tokens) queries over the gathered blocks of each row; causal by position."""
        shape, (rows, tokens) = self.shape, queries.shape[:2]
        length = tables.shape[1] * self._size
        gathered = (rows, length, shape.kv_heads, shape.head_dim)
        keys = layer.keys[tables].astype(np.float32).reshape(gathered).transpose(0, 2, 3, 1)
        values = layer.values[tables].astype(np.float32).reshape(gathered).transpose(0, 2, 1, 3)
        # Queries of one KV head, all its tokens and heads, are one matrix: (rows, kv heads, tokens · group, head_dim).
        group = shape.heads // shape.kv_heads
        grouped = queries.reshape(rows, tokens, shape.kv_heads, group, shape.head_dim).transpose(0, 2, 1, 3, 4)
        scores = grouped.reshape(rows, shape.kv_heads, tokens * group, shape.head_dim) @ keys
        scores *= np.float32(shape.head_dim**-0.5 / UNIT**2)
        future = np.arange(length) > positions[:, None, :, None, None]  # (rows, 1, tokens, 1, length)
        np.copyto(scores.reshape(rows, shape.kv_heads, tokens, group, length), -np.inf, where=future)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores *= LEVELS
        np.rint(scores, out=scores)  # shares in 127ths of the largest: their sums are exact too
        mixed = (scores @ values) / (scores.sum(axis=-1, keepdims=True) * UNIT)
        by_head: Floats = mixed.reshape(rows, shape.kv_heads, tokens, group, shape.head_dim).transpose(0, 2, 1, 3, 4)
        return by_head.reshape(rows, tokens, shape.width)


def _groups(tables: list[Ints]) -> list[tuple[Ints, Ints]]:
    """Decoding rows of similar length together: their places, and their block tables padded with block 0."""
    order = sorted(range(len(tables)), key=lambda row: len(tables[row]))
    groups = []
    for first in range(0, len(order), ATTENTION_ROWS):
        rows = order[first : first + ATTENTION_ROWS]
        padded = np.zeros((len(rows), len(tables[rows[-1]])), np.int64)
        for place, row in enumerate(rows):
            padded[place, : len(tables[row])] = tables[row]
        groups.append((np.array(rows), padded))
    return groups


def _rounded(states: Floats) -> Matrix:
    """The states in 8-bit steps, a step per row."""
    worth: Floats = np.maximum(np.abs(states).max(axis=1, keepdims=True), np.float32(1e-9)) / LEVELS
    return Matrix(np.rint(states / worth), worth)


def _norm(states: Floats) -> Matrix:
    """RMSNorm (Zhang & Sennrich 2019), its gain folded into the matrix that follows."""
    integers = _rounded(states).integers
    squares = np.einsum("ij,ij->i", integers, integers)[:, None] / np.float32(states.shape[1])
    return Matrix(integers, 1 / np.sqrt(squares + np.float32(1e-6)))


def _in_units(heads: Floats) -> Floats:
    rounded: Floats = np.clip(np.rint(heads * UNIT), -LEVELS, LEVELS)
    return rounded


def _rotate(heads: Floats, cos: Floats, sin: Floats) -> Floats:
    """RoPE on (tokens, heads, head_dim): the first half against the second."""
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def _matrix(random: np.random.Generator, rows: int, columns: int) -> Matrix:
    integers = _in_units(random.standard_normal((rows, columns), np.float32))
    return Matrix(integers, np.float32(rows**-0.5) / UNIT * np.ones(1, np.float32))


def _embedding(random: np.random.Generator, width: int, language: Language) -> Floats:
    """A vector per id, of unit mean square; ids of one word class share half of it."""
    table = random.standard_normal((language.vocab_size, width), np.float32)
    for ids in language.classes:
        table[list(ids)] = (table[list(ids)] + random.standard_normal(width, np.float32)) / np.float32(2**0.5)
    return table


def _head(random: np.random.Generator, embedding: Floats, language: Language) -> Matrix:
    """The output layer: prefers words whose class may follow the class of the last word; else it is random."""
    width, column = embedding.shape[1], {id_: place for place, id_ in enumerate(language.readable)}
    head = random.standard_normal((width, len(language.readable)), np.float32) * np.float32(width**-0.5)
    for ids, followers in zip(language.classes, language.followers, strict=True):
        common = embedding[list(ids)].mean(axis=0)
        for follower in set(followers):
            weight = CLASS_WEIGHT * (1 + REPEAT_WEIGHT * (followers.count(follower) - 1)) / width
            head[:, [column[id_] for id_ in language.classes[follower]]] += np.float32(weight) * common[:, None]
    worth = np.abs(head).max(keepdims=True)[0] / LEVELS
    return Matrix(np.rint(head / worth), worth)
