"""The models that the PyTorch engine can run: the toy's weights, SmolLM2's, and random ones of a large model's size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from engine.language import Language
from engine.torch_model import Tensor, TorchLayer, TorchTransformer, TorchWeights, plain_decode
from engine.transformer import PRESETS, Transformer
from sidecar.inflight.batch import BatcherSettings

CHAT = "smollm2"


class TorchShape(NamedTuple):
    """The sizes of a model with random weights. `vocab` are the rows of its output layer."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int


SHAPES = {
    "8b": TorchShape(32, 4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128_256),
    # What one of four tensor-parallel GPUs computes of a 70B. The two all-reduces of each layer are missing.
    "70b-tp4-shard": TorchShape(80, 8192, heads=16, kv_heads=2, head_dim=128, ffn=7168, vocab=32_064),
}


def torch_model_of(
    folder: Path, preset: str, seed: int, batcher: BatcherSettings, device: str
) -> tuple[Language, TorchTransformer]:
    """Return the model `preset` on `device`, its graphs captured. Raises ValueError if there is no such model."""
    columns, tokens_max = None, batcher.max_seq_len
    if preset == CHAT:
        weights = chat_weights(folder, tokens_max, device)
        language = Language.free(len(weights.head))
    elif preset in PRESETS:
        language = Language.load(folder)
        toy = Transformer(PRESETS[preset], language, tokens_max=tokens_max, blocks=1, tokens_per_block=1, seed=seed)
        weights = toy_weights(toy, tokens_max, device)
    elif preset in SHAPES:
        language = Language.load(folder)
        weights = random_weights(SHAPES[preset], tokens_max, device, seed)
        columns = torch.tensor(language.readable, device=device) % SHAPES[preset].vocab
    else:
        known = ", ".join((CHAT, *PRESETS, *SHAPES))
        raise ValueError(f"parameter 'preset' must be one of {known}, not {preset!r}")
    attend = plain_decode if device == "cpu" else kernel()
    model = TorchTransformer(weights, device, batcher.blocks_max, batcher.tokens_per_block, columns, attend)
    model.capture(max(batcher.max_num_tokens, batcher.max_batch_size), tokens_max)
    return language, model


def random_weights(shape: TorchShape, tokens_max: int, device: str, seed: int) -> TorchWeights:
    """Return weights that make no sense and take a real model's time."""
    draw = torch.Generator(device=device)
    draw.manual_seed(seed)
    sizes = {
        "qkv": ((shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.width),
        "out": (shape.width, shape.heads * shape.head_dim),
        "gate_up": (2 * shape.ffn, shape.width),
        "down": (shape.width, shape.ffn),
        "embedding": (shape.vocab, shape.width),
        "head": (shape.vocab, shape.width),
    }

    def part(name: str, _: int) -> Tensor:
        if name not in sizes:
            return torch.ones(shape.width, device=device, dtype=dtype_on(device))
        empty = torch.empty(sizes[name], device=device, dtype=dtype_on(device))
        return empty.normal_(0, sizes[name][1] ** -0.5, generator=draw)

    turns = _turns(500_000.0, shape.head_dim, tokens_max, device)
    return _weights(part, shape.layers, heads=shape.heads, kv_heads=shape.kv_heads, epsilon=1e-5, turns=turns)


def toy_weights(toy: Transformer, tokens_max: int, device: str) -> TorchWeights:
    """Return the CPU engine's weights without their 8-bit steps of activations."""

    def part(name: str, layer: int) -> Tensor:
        if name.endswith("gain") or name == "embedding":
            return _sent(toy.embedding if name == "embedding" else np.ones(toy.shape.width), device)
        matrix = toy.head if name == "head" else getattr(toy.layers[layer], name)
        return _sent((matrix.integers * matrix.worth).T, device)

    turns, places = _turns(10_000.0, toy.shape.head_dim, tokens_max, device), _sent(toy.places, device)
    heads = {"heads": toy.shape.heads, "kv_heads": toy.shape.kv_heads}
    return _weights(part, len(toy.layers), **heads, epsilon=1e-6, turns=turns, places=places)


def chat_weights(folder: Path, tokens_max: int, device: str) -> TorchWeights:
    """Return SmolLM2's weights, from the graph that dev/chat_model.py writes for the CPU engine.

    Raises ValueError if there is none, or nothing to read it with.
    """
    try:
        import onnx
    except ImportError as error:
        raise ValueError("parameter 'preset' is smollm2, but the server has no package onnx") from error
    if not (folder / "model.onnx").exists():
        raise ValueError(f"parameter 'preset' is smollm2, but there is no {folder / 'model.onnx'}; run scripts/setup")
    graph = onnx.load(str(folder / "model.onnx")).graph
    found = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    sizes = {each.name: each.i for each in attentions[0].attribute}
    heads = {"heads": sizes["num_heads"], "kv_heads": sizes["kv_num_heads"]}
    turned_heads = sum(heads.values())

    def part(name: str, layer: int) -> Tensor:
        """Return a weight of a layer, or of the model: its norms are behind the last layer, its head is `logits`."""
        if name in ("gain", "attention_gain"):
            return _sent(found[f"blk.{layer - 1}.next.gain" if layer else "first.gain"], device)
        if name == "ffn_gain":
            return _sent(found[f"blk.{layer}.ffn.gain"], device)
        stored = {"embedding": "embedding", "head": "logits"}.get(name, f"blk.{layer}.{name}")
        if f"{stored}.w" in found:
            matrix = found[f"{stored}.w"].T
        else:  # 8-bit integers around 128, in blocks with a scale each
            integers = found[f"{stored}.q"].astype(np.float32) - 128
            matrix = (integers * found[f"{stored}.scale"].reshape(*integers.shape[:2], 1)).reshape(len(integers), -1)
        if name == "qkv":  # RoPE turns pairs that are neighbours there and in two halves of a head here
            turned = turned_heads * 2 * found["cos"].shape[1]
            pairs = matrix[:turned].reshape(turned_heads, -1, 2, matrix.shape[1])
            matrix = np.concatenate((pairs.swapaxes(1, 2).reshape(turned, -1), matrix[turned:]))
        return _sent(matrix, device)

    turns = _sent(found["cos"][:tokens_max], device), _sent(found["sin"][:tokens_max], device)
    return _weights(part, len(attentions), **heads, epsilon=1e-5, turns=turns)


def _weights(part: Callable[[str, int], Tensor], layers: int, **more: Any) -> TorchWeights:
    """Put a model together from its parts, which have the names of the fields."""
    names = [each.name for each in fields(TorchLayer)]
    return TorchWeights(
        layers=[TorchLayer(**{name: part(name, layer) for name in names}) for layer in range(layers)],
        **{name: part(name, layers) for name in ("embedding", "head", "gain")},
        **more,
    )


def dtype_on(device: str) -> Any:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def _turns(base: float, head_dim: int, tokens_max: int, device: str) -> tuple[Tensor, Tensor]:
    angles = np.outer(np.arange(tokens_max), base ** (-np.arange(0, head_dim, 2) / head_dim))
    return _sent(np.cos(angles), device), _sent(np.sin(angles), device)


def _sent(values: Any, device: str) -> Tensor:
    return torch.tensor(np.ascontiguousarray(values, np.float32), dtype=dtype_on(device), device=device)


def kernel() -> Any:
    """Return attention in OpenAI Triton, which comes with PyTorch for CUDA alone."""
    return import_module("engine.torch_kernels").paged_decode
