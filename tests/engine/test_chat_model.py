"""The chat model's graph and its buffers, on small random weights of the same architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dev.chat_model import LlamaShape, model_of, quantized, save_model
from engine.calls import EngineCall
from engine.chat_model import ChatModel
from engine.numpy_engine import NumpyEngine, NumpySettings
from sidecar.inflight.batch import BatcherSettings, End
from tests.engine.builders import run, tokens

SHAPE = LlamaShape(layers=2, heads=4, kv_heads=2, width=64, tokens_max=256)
VOCABULARY, FFN = 96, 128


def random_weights() -> dict[str, NDArray[np.float32]]:
    """Weights that 8 bits hold exactly, so that a plain computation has the same ones."""
    random = np.random.default_rng(7)
    narrow = SHAPE.kv_heads * SHAPE.head_dim
    sizes = {"token_embd": (VOCABULARY, SHAPE.width)}
    for layer in range(SHAPE.layers):
        parts = {"attn_q": SHAPE.width, "attn_k": narrow, "attn_v": narrow, "attn_output": SHAPE.width}
        parts |= {"ffn_gate": FFN, "ffn_up": FFN}
        sizes |= {f"blk.{layer}.{name}": (rows, SHAPE.width) for name, rows in parts.items()}
        sizes[f"blk.{layer}.ffn_down"] = (SHAPE.width, FFN)
    found = {}
    for name, (rows, columns) in sizes.items():
        integers, scales = quantized(random.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5))
        whole = (integers.astype(np.float32) - 128) * scales[..., None]
        found[f"{name}.weight"] = whole.reshape(rows, columns) * np.float32(4 if name == "token_embd" else 1)
    names = ["output_norm", *(f"blk.{n}.{part}_norm" for n in range(SHAPE.layers) for part in ("attn", "ffn"))]
    return found | {f"{name}.weight": random.uniform(0.5, 1.5, SHAPE.width).astype(np.float32) for name in names}


WEIGHTS = random_weights()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("chat")
    save_model(model_of(SHAPE, WEIGHTS), made)
    return made


def engine(folder: Path, **batcher: Any) -> NumpyEngine:
    settings: dict[str, Any] = {"max_batch_size": 4, "max_seq_len": 128, "max_num_tokens": 64, "kv_tokens_max": 2048}
    settings |= {"tokens_per_block": 8, **batcher}
    return NumpyEngine(NumpySettings(tokenizer_dir=folder, preset="smollm2", batcher=BatcherSettings(**settings)))


def call(seed: int, output: int = 20, prompt: int = 30, **more: Any) -> EngineCall:
    ids = tuple(np.random.default_rng(seed).integers(0, VOCABULARY, prompt).tolist())
    return EngineCall(input_ids=ids, output_tokens_max=output, **{"streaming": True, **more})


def plain(ids: tuple[int, ...]) -> NDArray[np.float32]:
    """The logits behind `ids`, written out in float32: no cache, head by head."""
    states = WEIGHTS["token_embd.weight"][list(ids)]
    for layer in range(SHAPE.layers):
        name = f"blk.{layer}"
        normal = _norm(states, WEIGHTS[f"{name}.attn_norm.weight"])
        states = states + _attention(normal, name) @ WEIGHTS[f"{name}.attn_output.weight"].T
        normal = _norm(states, WEIGHTS[f"{name}.ffn_norm.weight"])
        gate = normal @ WEIGHTS[f"{name}.ffn_gate.weight"].T
        up = normal @ WEIGHTS[f"{name}.ffn_up.weight"].T
        states = states + (gate / (1 + np.exp(-gate)) * up) @ WEIGHTS[f"{name}.ffn_down.weight"].T
    logits: NDArray[np.float32] = _norm(states, WEIGHTS["output_norm.weight"])[-1] @ WEIGHTS["token_embd.weight"].T
    return logits


def _norm(states: NDArray[np.float32], gain: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = states / np.sqrt((states**2).mean(axis=-1, keepdims=True) + SHAPE.epsilon) * gain
    return scaled


def _attention(states: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    def heads(part: str) -> NDArray[np.float32]:
        product = states @ WEIGHTS[f"{name}.attn_{part}.weight"].T
        return product.reshape(len(states), -1, SHAPE.head_dim).transpose(1, 0, 2)

    queries, keys, values = _turn(heads("q")), _turn(heads("k")), heads("v")
    mixed = []
    for head in range(SHAPE.heads):
        shared = head // (SHAPE.heads // SHAPE.kv_heads)
        scores = queries[head] @ keys[shared].T * SHAPE.head_dim**-0.5
        scores[np.triu_indices(len(states), 1)] = -np.inf
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed.append(shares / shares.sum(axis=1, keepdims=True) @ values[shared])
    return np.concatenate(mixed, axis=1)


def _turn(heads: NDArray[np.float32]) -> NDArray[np.float32]:
    """RoPE on the pairs (2i, 2i+1)."""
    size = SHAPE.head_dim
    angle = np.arange(heads.shape[1])[:, None] * SHAPE.rope_base ** (-np.arange(0, size, 2) / size)
    turned = np.empty_like(heads)
    turned[..., ::2] = heads[..., ::2] * np.cos(angle) - heads[..., 1::2] * np.sin(angle)
    turned[..., 1::2] = heads[..., ::2] * np.sin(angle) + heads[..., 1::2] * np.cos(angle)
    return turned


def test_it_says_what_the_plain_formula_prefers(folder: Path) -> None:
    asked = call(1, output=12)
    (parts,) = run(engine(folder), asked)
    said = tokens(parts)
    for place, id_ in enumerate(said):
        logits = plain(asked.input_ids + said[:place])
        assert logits[id_] > logits.max() - 0.15 * np.abs(logits).max()  # 8-bit activations


def test_all_in_float32_it_is_the_plain_formula(tmp_path: Path) -> None:
    save_model(model_of(SHAPE, WEIGHTS, float_only=True), tmp_path)
    asked = call(1, output=12)
    (parts,) = run(engine(tmp_path), asked)
    said = tokens(parts)
    assert said == tuple(int(plain(asked.input_ids + said[:place]).argmax()) for place in range(len(said)))


def test_the_scale_of_a_block_is_the_one_that_meets_its_levels() -> None:
    levels = np.resize(np.arange(-5, 11, dtype=np.float32), (1, 32))  # 10/127 would miss most of them
    integers, scales = quantized(levels)
    assert np.abs((integers.astype(np.float32) - 128) * scales[..., None] - levels).max() < 1e-5
    assert quantized(np.zeros((1, 32), np.float32))[0].tolist() == [[[128] * 32]]


def test_neighbours_change_nothing(folder: Path) -> None:
    calls = [call(seed, output=10 + 6 * seed, prompt=5 + 9 * seed) for seed in range(7)]
    together = run(engine(folder), *calls)
    assert [tokens(each) for each in together] == [tokens(run(engine(folder), each)[0]) for each in calls]


def test_a_row_that_outlives_its_neighbours_moves_and_goes_on_as_before(folder: Path) -> None:
    calls = [call(seed, output=60 if seed == 3 else 4) for seed in range(4)]
    together = engine(folder)
    parts = run(together, *calls)
    assert tokens(parts[3]) == tokens(run(engine(folder), calls[3])[0])
    assert isinstance(together._transformer, ChatModel)
    assert together._transformer._places == {}


def test_a_prompt_computed_before_is_taken_from_the_store(folder: Path) -> None:
    once = engine(folder)
    (first,) = run(once, call(5))
    run(once, *(call(seed) for seed in range(10, 14)))  # every buffer has been another's since
    (again,) = run(once, call(5))
    assert again[-1].figures is not None
    assert again[-1].figures.reused_blocks == 4
    assert tokens(again)[:2] == tokens(first)[:2]


def test_the_end_id_ends_an_answer(folder: Path) -> None:
    free = tokens(run(engine(folder), call(2))[0])
    end_id = free[6]
    (parts,) = run(engine(folder), call(2, end_id=end_id))
    assert parts[-1].end is End.END_ID
    assert len(parts) == free.index(end_id) + 1


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*model\.onnx; run scripts/setup"):
        engine(tmp_path)
