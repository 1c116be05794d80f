"""The models that the PyTorch engine can run: the toy's weights, SmolLM2's, and random ones of a large model's size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.language import Language
from engine.torch_model import Tensor, TorchLayer, TorchTransformer, TorchWeights, plain_decode
from engine.transformer import PRESETS, Transformer
from sidecar.inflight.batch import BatcherSettings

CHAT = "smollm2"


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchShape:
    """The sizes of a model with random weights. `vocab` are the rows of its output layer."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int


SHAPES = {
    "8b": TorchShape(layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128_256),
    # What one of four tensor-parallel GPUs computes of a 70B. The two all-reduces of each layer are missing.
    "70b-tp4-shard": TorchShape(layers=80, width=8192, heads=16, kv_heads=2, head_dim=128, ffn=7168, vocab=32_064),
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
    model = TorchTransformer(
        weights=weights,
        device=device,
        blocks=batcher.blocks_max,
        block_tokens=batcher.tokens_per_block,
        columns=columns,
        attend=plain_decode if device == "cpu" else kernel(),
    )
    model.capture(max(batcher.max_num_tokens, batcher.max_batch_size), tokens_max)
    return language, model


def random_weights(shape: TorchShape, tokens_max: int, device: str, seed: int) -> TorchWeights:
    """Return weights that make no sense and take a real model's time."""
    draw = torch.Generator(device=device)
    draw.manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        empty = torch.empty(rows, columns, device=device, dtype=dtype_on(device))
        return empty.normal_(0, columns**-0.5, generator=draw)

    ones = _sent(np.ones(shape.width), device)
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
    return TorchWeights(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        epsilon=1e-5,
        embedding=matrix(shape.vocab, shape.width),
        head=matrix(shape.vocab, shape.width),
        gain=ones,
        layers=layers,
        turns=_turns(500_000.0, shape.head_dim, tokens_max, device),
    )


def toy_weights(toy: Transformer, tokens_max: int, device: str) -> TorchWeights:
    """Return the CPU engine's weights without their 8-bit steps of activations."""
    ones = _sent(np.ones(toy.shape.width), device)
    names = ("qkv", "out", "gate_up", "down")
    layers = [
        {name: _sent((getattr(layer, name).integers * getattr(layer, name).worth).T, device) for name in names}
        for layer in toy.layers
    ]
    return TorchWeights(
        heads=toy.shape.heads,
        kv_heads=toy.shape.kv_heads,
        epsilon=1e-6,
        embedding=_sent(toy.embedding, device),
        head=_sent((toy.head.integers * toy.head.worth).T, device),
        gain=ones,
        layers=[TorchLayer(attention_gain=ones, ffn_gain=ones, **each) for each in layers],
        turns=_turns(10_000.0, toy.shape.head_dim, tokens_max, device),
        places=_sent(toy.places, device),
    )


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
    heads, kv_heads = sizes["num_heads"], sizes["kv_num_heads"]

    def floats(name: str) -> Any:
        if f"{name}.w" in found:
            return found[f"{name}.w"].T
        integers = found[f"{name}.q"].astype(np.float32) - 128
        return (integers * found[f"{name}.scale"].reshape(*integers.shape[:2], 1)).reshape(len(integers), -1)

    def halves(qkv: Any) -> Any:
        """What RoPE turns together stands in two halves of a head here, and side by side in the graph."""
        turned = (heads + kv_heads) * 2 * found["cos"].shape[1]
        pairs = qkv[:turned].reshape(heads + kv_heads, -1, 2, qkv.shape[1])
        return np.concatenate((pairs.swapaxes(1, 2).reshape(turned, -1), qkv[turned:]))

    gains = ["first.gain", *(f"blk.{layer}.next.gain" for layer in range(len(attentions)))]
    layers = [
        TorchLayer(
            attention_gain=_sent(found[gains[layer]], device),
            ffn_gain=_sent(found[f"blk.{layer}.ffn.gain"], device),
            qkv=_sent(halves(floats(f"blk.{layer}.qkv")), device),
            **{name: _sent(floats(f"blk.{layer}.{name}"), device) for name in ("out", "gate_up", "down")},
        )
        for layer in range(len(attentions))
    ]
    return TorchWeights(
        heads=heads,
        kv_heads=kv_heads,
        epsilon=1e-5,
        embedding=_sent(floats("embedding"), device),
        head=_sent(floats("logits"), device),
        gain=_sent(found[gains[-1]], device),
        layers=layers,
        turns=(_sent(found["cos"][:tokens_max], device), _sent(found["sin"][:tokens_max], device)),
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
    """Return attention in OpenAI Triton, which comes with PyTorch for CUDA."""
    from engine.torch_kernels import paged_decode

    return paged_decode
