"""The arithmetic: paged, chunked and batched attention gives what the plain formula gives."""

from __future__ import annotations

import numpy as np

from engine.transformer import PRESETS, Batch, Chunk, Floats, Ints, Layer, Transformer
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
        Batch(
            ids=ids[begin:end],
            positions=np.arange(begin, end),
            slots=places(table, begin, end),
            tables=[],
            chunks=[Chunk(begin=0, tokens=end - begin, table=table[: -(-end // SIZE)])],
            wanted=np.array([end - begin - 1]),
        )
    )


def plain(transformer: Transformer, ids: Ints) -> Floats:
    """The same transformer written out: one sequence, no cache, head by head."""
    shape = transformer.shape
    states = transformer.embedding[ids] + transformer._places[: len(ids)]
    for layer in transformer._layers:
        states = states + _plain_attention(transformer, layer, _rms(states)) @ layer.out
        gate, up = np.split(_rms(states) @ layer.gate_up, 2, axis=1)
        states = states + (gate / (1 + np.exp(-gate)) * up) @ layer.down
    assert shape.head_dim * shape.heads == shape.width
    logits: Floats = (_rms(states) @ transformer.head)[-1]
    return logits


def _rms(states: Floats) -> Floats:
    normed: Floats = states / np.sqrt((states**2).mean(axis=1, keepdims=True) + 1e-6)
    return normed


def _plain_attention(transformer: Transformer, layer: Layer, states: Floats) -> Floats:
    shape = transformer.shape
    heads = np.split(states @ layer.qkv, shape.heads + 2 * shape.kv_heads, axis=1)
    turned = [_turn(each) for each in heads[: shape.heads + shape.kv_heads]]
    mixed = []
    for head in range(shape.heads):
        kv_head = head // (shape.heads // shape.kv_heads)
        scores = turned[head] @ turned[shape.heads + kv_head].T / np.sqrt(shape.head_dim)
        scores[np.triu_indices(len(states), 1)] = -np.inf
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed.append(shares / shares.sum(axis=1, keepdims=True) @ heads[shape.heads + shape.kv_heads + kv_head])
    return np.concatenate(mixed, axis=1)


def _turn(head: Floats) -> Floats:
    """RoPE by complex numbers: the first half is real, the second imaginary."""
    half = head.shape[1] // 2
    angle = np.arange(len(head))[:, None] * 10_000.0 ** (-np.arange(half) / half)
    turned = (head[:, :half] + 1j * head[:, half:]) * np.exp(1j * angle)
    return np.concatenate((turned.real, turned.imag), axis=1)


def test_a_prompt_in_one_chunk_is_the_plain_formula() -> None:
    transformer = model()
    found = prefill(transformer, np.arange(8), 0, 23)
    np.testing.assert_allclose(found[0], plain(transformer, IDS), atol=2e-3, rtol=1e-3)


def test_chunks_and_scattered_blocks_change_nothing() -> None:
    transformer, table = model(), np.array([7, 3, 30, 1, 12, 9])
    prefill(transformer, table, 0, 6)
    prefill(transformer, table, 6, 16)
    found = prefill(transformer, table, 16, 23)
    np.testing.assert_allclose(found[0], plain(transformer, IDS), atol=2e-3, rtol=1e-3)


def test_decoding_rows_of_different_lengths_beside_a_chunk_are_each_the_plain_formula() -> None:
    transformer = model()
    tables = [np.array([1, 2, 3, 4]), np.array([10, 11]), np.arange(20, 26)]
    lengths = [14, 5]
    others = [IDS[::-1][:14], IDS[3:8]]
    for table, ids in zip(tables, others, strict=False):
        prefill(transformer, table, 0, len(ids) - 1, ids)
    batch = Batch(
        ids=np.concatenate(([ids[-1] for ids in others], IDS)),
        positions=np.concatenate(([length - 1 for length in lengths], np.arange(23))),
        slots=np.concatenate((places(tables[0], 13, 14), places(tables[1], 4, 5), places(tables[2], 0, 23))),
        tables=[tables[0], tables[1]],
        chunks=[Chunk(begin=2, tokens=23, table=tables[2])],
        wanted=np.array([0, 1, 24]),
    )
    found = transformer.logits(batch)
    for row, ids in zip(found, [*others, IDS], strict=True):
        np.testing.assert_allclose(row, plain(transformer, np.asarray(ids)), atol=2e-3, rtol=1e-3)


def test_a_copied_block_serves_as_well_as_its_source() -> None:
    transformer = model()
    prefill(transformer, np.arange(6), 0, 22)
    transformer.copy_block(0, 31)
    found = prefill(transformer, np.array([31, 1, 2, 3, 4, 5]), 22, 23)
    np.testing.assert_allclose(found[0], plain(transformer, IDS), atol=2e-3, rtol=1e-3)


def test_the_weights_come_from_the_seed() -> None:
    assert np.array_equal(model().head, model().head)
    assert not np.array_equal(
        model().head, Transformer(PRESETS["tiny"], LANGUAGE, tokens_max=64, blocks=2, tokens_per_block=4, seed=4).head
    )
