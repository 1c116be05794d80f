"""The arithmetic: paged, chunked and batched, bit for bit what the plain formula in integers gives."""

from __future__ import annotations

import numpy as np

from engine.transformer import PRESETS, FlatBatch, FlatChunk, Floats, Ints, Layer, Matrix, Transformer
from tests.engine.builders import LANGUAGE

SIZE = 4
IDS = np.array(LANGUAGE.readable)[np.random.default_rng(5).integers(0, 200, 23)]


def model(preset: str = "tiny") -> Transformer:
    return Transformer(PRESETS[preset], LANGUAGE, tokens_max=64, blocks=32, tokens_per_block=SIZE, seed=3)


def places(table: Ints, begin: int, end: int) -> Ints:
    at = np.arange(begin, end)
    return table[at // SIZE] * SIZE + at % SIZE


def prefill(transformer: Transformer, table: Ints, begin: int, end: int, ids: Ints = IDS) -> Floats:
    """The logits behind the last of the tokens `begin` ≤ i < `end`, computed as one chunk."""
    return transformer.logits(
        FlatBatch(
            ids=ids[begin:end],
            positions=np.arange(begin, end),
            slots=places(table, begin, end),
            tables=[],
            chunks=[FlatChunk(begin=0, tokens=end - begin, table=table[: -(-end // SIZE)])],
            wanted=np.array([end - begin - 1]),
        )
    )


def plain(transformer: Transformer, ids: Ints) -> Floats:
    """The same transformer written out: one sequence, no cache, head by head, integers as integers."""
    states = transformer.embedding[ids] + transformer.places[: len(ids)]
    for layer in transformer.layers:
        states = states + _times(_plain_attention(transformer, layer, states), layer.out)
        gate, up = np.split(_times(states, layer.gate_up, norm=True), 2, axis=1)
        states = states + _times(gate / (1 + np.exp(-gate)) * up, layer.down)
    logits: Floats = _times(states, transformer.head, norm=True)[-1]
    return logits


def _times(states: Floats, weights: Matrix, norm: bool = False) -> Floats:
    """States rounded to 8 bits by row, normalised if asked, times the weights: in 64-bit integers."""
    worth = np.abs(states).max(axis=1, keepdims=True) / np.float32(127)
    integers = np.rint(states / worth).astype(np.int64)
    if norm:
        worth = 1 / np.sqrt(
            (integers**2).sum(axis=1, keepdims=True).astype(np.float32) / np.float32(states.shape[1]) + np.float32(1e-6)
        )
    product: Floats = (integers @ weights.integers.astype(np.int64)).astype(np.float32) * (worth * weights.worth)
    return product


def _plain_attention(transformer: Transformer, layer: Layer, states: Floats) -> Floats:
    shape = transformer.shape
    heads = np.split(_times(states, layer.qkv, norm=True), shape.heads + 2 * shape.kv_heads, axis=1)
    turned = [_units(_turn(each)) for each in heads[: shape.heads + shape.kv_heads]]
    values = [_units(each) for each in heads[shape.heads + shape.kv_heads :]]
    mixed = []
    for head in range(shape.heads):
        kv_head = head // (shape.heads // shape.kv_heads)
        scores = (turned[head] @ turned[shape.heads + kv_head].T).astype(np.float32)
        scores *= np.float32(shape.head_dim**-0.5 / 32**2)
        scores[np.triu_indices(len(states), 1)] = -np.inf
        shares = np.rint(np.exp(scores - scores.max(axis=1, keepdims=True)) * np.float32(127)).astype(np.int64)
        sums = shares.sum(axis=1, keepdims=True).astype(np.float32)
        mixed.append((shares @ values[kv_head]).astype(np.float32) / (sums * np.float32(32)))
    return np.concatenate(mixed, axis=1)


def _units(head: Floats) -> Ints:
    integers: Ints = np.clip(np.rint(head * np.float32(32)), -127, 127).astype(np.int64)
    return integers


def _turn(head: Floats) -> Floats:
    """RoPE: the first half against the second."""
    half = head.shape[1] // 2
    angle = np.arange(len(head))[:, None] * 10_000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    first, second = head[:, :half], head[:, half:]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=1)


def test_a_prompt_in_one_chunk_is_the_plain_formula() -> None:
    transformer = model()
    found = prefill(transformer, np.arange(8), 0, 23)
    assert np.array_equal(found[0], plain(transformer, IDS))


def test_chunks_and_scattered_blocks_change_nothing() -> None:
    transformer, table = model(), np.array([7, 3, 30, 1, 12, 9])
    prefill(transformer, table, 0, 6)
    prefill(transformer, table, 6, 16)
    found = prefill(transformer, table, 16, 23)
    assert np.array_equal(found[0], plain(transformer, IDS))


def test_decoding_rows_of_different_lengths_beside_a_chunk_are_each_the_plain_formula() -> None:
    transformer = model()
    tables = [np.array([1, 2, 3, 4]), np.array([10, 11]), np.arange(20, 26)]
    lengths = [14, 5]
    others = [IDS[::-1][:14], IDS[3:8]]
    for table, ids in zip(tables, others, strict=False):
        prefill(transformer, table, 0, len(ids) - 1, ids)
    batch = FlatBatch(
        ids=np.concatenate(([ids[-1] for ids in others], IDS)),
        positions=np.concatenate(([length - 1 for length in lengths], np.arange(23))),
        slots=np.concatenate((places(tables[0], 13, 14), places(tables[1], 4, 5), places(tables[2], 0, 23))),
        tables=[tables[0], tables[1]],
        chunks=[FlatChunk(begin=2, tokens=23, table=tables[2])],
        wanted=np.array([0, 1, 24]),
    )
    found = transformer.logits(batch)
    for row, ids in zip(found, [*others, IDS], strict=True):
        assert np.array_equal(row, plain(transformer, np.asarray(ids)))


def test_a_copied_block_serves_as_well_as_its_source() -> None:
    transformer = model()
    prefill(transformer, np.arange(6), 0, 22)
    transformer.copy_block(0, 31)
    found = prefill(transformer, np.array([31, 1, 2, 3, 4, 5]), 22, 23)
    assert np.array_equal(found[0], plain(transformer, IDS))


def test_the_weights_come_from_the_seed() -> None:
    assert np.array_equal(model().head.integers, model().head.integers)
    assert not np.array_equal(
        model().head.integers,
        Transformer(PRESETS["tiny"], LANGUAGE, tokens_max=64, blocks=2, tokens_per_block=4, seed=4).head.integers,
    )
