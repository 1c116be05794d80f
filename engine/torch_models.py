"""The models that the PyTorch engine can run: the toy's weights, SmolLM2's, and random ones of a large model's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.language import Language
from engine.torch_model import (
    SHAPES,
    TorchLayer,
    TorchShape,
    TorchTransformer,
    TorchWeights,
    dtype_on,
    plain_decode,
    random_weights,
)
from engine.transformer import PRESETS, Matrix, Transformer
from sidecar.inflight.batch import BatcherSettings


def torch_model_of(
    folder: Path, preset: str, seed: int, batcher: BatcherSettings, device: str
) -> tuple[Language, TorchTransformer]:
    """Return the model `preset` on `device`, its graphs captured. Raises ValueError if there is no such model."""
    language, columns = Language.load(folder), None
    if preset in PRESETS:
        toy = Transformer(
            PRESETS[preset], language, tokens_max=batcher.max_seq_len, blocks=1, tokens_per_block=1, seed=seed
        )
        weights = toy_weights(toy, device)
    elif preset in SHAPES:
        weights = random_weights(SHAPES[preset], device, seed)
        columns = torch.tensor(language.readable, device=device) % SHAPES[preset].vocab
    else:
        raise ValueError(f"parameter 'preset' must be one of {', '.join((*PRESETS, *SHAPES))}, not {preset!r}")
    model = TorchTransformer(
        weights=weights,
        device=device,
        blocks=batcher.blocks_max,
        block_tokens=batcher.tokens_per_block,
        tokens_max=batcher.max_seq_len,
        columns=columns,
        attend=plain_decode if device == "cpu" else kernel(),
    )
    model.capture(max(batcher.max_num_tokens, batcher.max_batch_size))
    return language, model


def toy_weights(toy: Transformer, device: str) -> TorchWeights:
    """Return the CPU engine's weights without their 8-bit steps of activations."""
    shape = toy.shape
    ones = _sent(np.ones(shape.width, np.float32), device)
    layers = [
        TorchLayer(
            attention_gain=ones,
            ffn_gain=ones,
            **{name: _matrix(getattr(layer, name), device) for name in ("qkv", "out", "gate_up", "down")},
        )
        for layer in toy.layers
    ]
    return TorchWeights(
        shape=TorchShape(
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            ffn=shape.ffn,
            vocab=len(toy.embedding),
            rope_base=10_000.0,
            epsilon=1e-6,
        ),
        embedding=_sent(toy.embedding, device),
        head=_matrix(toy.head, device),
        gain=ones,
        layers=layers,
        places=_sent(toy.places, device),
    )


def _matrix(matrix: Matrix, device: str) -> Any:
    return _sent(np.ascontiguousarray((matrix.integers * matrix.worth).T), device)


def _sent(values: Any, device: str) -> Any:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device, dtype_on(device))


def kernel() -> Any:
    """Return attention in OpenAI Triton, which comes with PyTorch for CUDA."""
    from engine.torch_kernels import paged_decode

    return paged_decode
