"""The chat model's directory from its GGUF: sizes, weights in 8 bits, and the words of its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dev.chat_model import BLOCK, CONTROL, END_IDS, LlamaShape, quantized, tokenizer_of, write_text_files

LETTERS = [chr(code) for code in (*range(33, 127), 0x120)]  # Ġ is a space
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
METADATA: dict[str, Any] = {
    "tokenizer.ggml.tokens": [*SPECIAL, *LETTERS, "th", "the"],
    "tokenizer.ggml.merges": ["t h", "th e"],
    "tokenizer.ggml.token_type": [CONTROL] * 3 + [1] * (len(LETTERS) + 2),
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": "{{ messages }}",
    "llama.context_length": 2048,
}


def test_the_sizes_come_from_the_files_metadata() -> None:
    names = "block_count embedding_length context_length attention.head_count attention.head_count_kv"
    metadata: dict[str, Any] = {
        f"llama.{name}": number for name, number in zip(names.split(), (30, 576, 8192, 9, 3), strict=True)
    }
    metadata |= {"llama.rope.freq_base": 1e5, "llama.attention.layer_norm_rms_epsilon": 1e-5}
    shape = LlamaShape.of(metadata)
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim, shape.tokens_max) == (30, 9, 3, 64, 8192)


def restored(weights: Any) -> Any:
    integers, scales = quantized(weights)
    return ((integers.astype(np.float32) - 128) * scales[..., None]).reshape(weights.shape)


def test_weights_that_8_bits_hold_come_back_exactly() -> None:
    random = np.random.default_rng(1)
    integers = random.integers(-127, 128, (4, 2 * BLOCK)).astype(np.float32)
    integers[:, ::BLOCK] = 127  # the largest of each block
    weights = (integers * np.float32(0.01)).astype(np.float32)
    assert np.allclose(restored(weights), weights, rtol=1e-5)


def test_weights_at_16_even_levels_are_met_better_than_by_the_largest_integer_alone() -> None:
    levels = np.random.default_rng(2).integers(0, 16, (8, 4 * BLOCK)).astype(np.float32)
    weights = (levels * np.float32(0.013) - np.float32(0.07)).astype(np.float32)
    error = np.abs(restored(weights) - weights).max()
    assert error < np.abs(weights).max() / 127 / 2 + 1e-7


def test_a_block_of_zeros_stays_zero() -> None:
    assert (restored(np.zeros((1, BLOCK), np.float32)) == 0).all()


def test_digits_stand_one_by_one_and_merges_and_special_tokens_are_whole() -> None:
    tokenizer: Any = tokenizer_of(METADATA)
    assert tokenizer.encode("the<|im_end|>").tokens == ["the", "<|im_end|>"]
    assert tokenizer.encode("123").tokens == ["1", "2", "3"]
    assert tokenizer.decode(tokenizer.encode("the end").ids) == "the end"


def test_the_directory_says_what_ends_an_answer(tmp_path: Path) -> None:
    write_text_files(METADATA, tmp_path)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert generation == {"eos_token_id": list(END_IDS), "pad_token_id": 2}
    assert (config["eos_token"], config["model_max_length"]) == ("<|im_end|>", 2048)
    assert (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("width", [BLOCK, 3 * BLOCK])
def test_a_row_has_a_scale_for_each_block(width: int) -> None:
    integers, scales = quantized(np.ones((5, width), np.float32))
    assert (integers.shape, scales.shape) == ((5, width // BLOCK, BLOCK), (5, width // BLOCK))
