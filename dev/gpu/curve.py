"""How long an iteration of the PyTorch engine takes, as a profile file: python -m dev.gpu.curve PRESET FILE …

`points` are [tokens, ms] of what all tokens of an iteration share, the linear layers. `attention` is what comes on top,
fitted to whole iterations: ms per iteration, per row, per token of context of a decoding row, and per prompt token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.models import model_of
from engine.torch_model import BUCKETS, TorchTransformer, dtype_on
from engine.transformer import FlatBatch, FlatChunk
from sidecar.inflight.batch import BatcherSettings

TERMS = ("iteration_ms", "row_ms", "context_token_ms", "prompt_token_ms")
# (decoding rows, context tokens of each, prompt tokens)
MIXTURES = [
    *((rows, context, 0) for rows in (1, 16, 32, 64) for context in (256, 1024, 3584)),
    *((rows, 1024, prompt) for rows in (0, 16, 48) for prompt in (64, 128, 256, 448)),
]


def timed(device: str, work: Callable[[], object], repeats: int) -> float:
    """Return the median ms of `work`, on an idle device at the begin and at the end of each call."""
    found = []
    for _ in range(repeats):
        begin_s = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - begin_s))
    return statistics.median(found)


def linear_ms(model: TorchTransformer, tokens: int, repeats: int) -> float:
    """Return the ms of the linear layers for so many tokens, in a graph where there are graphs."""
    device = model.device
    states = torch.randn(tokens, model.weights.shape.width, device=device, dtype=dtype_on(device))
    with torch.inference_mode():
        if device == "cpu":
            return timed(device, lambda: model.linear_layers(states), repeats)
        model.on_a_side_stream(lambda: model.linear_layers(states))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model.linear_layers(states)
        graph.replay()
        return timed(device, graph.replay, repeats)


def batch_of(settings: BatcherSettings, rows: int, context: int, prompt: int) -> FlatBatch:
    """An iteration whose rows have blocks of their own, as far as there are blocks."""
    size, blocks = settings.tokens_per_block, settings.blocks_max
    each = -(-(context + 1) // size)
    tables = [np.arange(row * each, (row + 1) * each) % blocks for row in range(rows)]
    slots = [table[context // size] * size + context % size for table in tables]
    chunks = []
    if prompt:
        table = np.arange(rows * each, rows * each + -(-prompt // size)) % blocks
        chunks = [FlatChunk(begin=rows, tokens=prompt, table=table)]
        slots += [table[at // size] * size + at % size for at in range(prompt)]
    return FlatBatch(
        ids=np.arange(rows + prompt) + 60,
        positions=np.array([context] * rows + list(range(prompt))),
        slots=np.array(slots),
        tables=tables,
        chunks=chunks,
        wanted=np.arange(rows + bool(prompt)),
    )


def curve(options: argparse.Namespace) -> dict[str, Any]:
    """Measure within the budget: first the linear layers, then whole iterations."""
    begin_s, cuda = time.monotonic(), options.device != "cpu"
    settings = BatcherSettings(
        max_batch_size=64,
        max_num_tokens=512,
        max_seq_len=4096 if cuda else 512,
        kv_tokens_max=240_000 if cuda else 16_384,
        tokens_per_block=64,
    )
    _, model = model_of(
        Path(__file__).parents[2] / "model_repository/tokenizer", options.preset, 0, settings, options.device
    )
    assert isinstance(model, TorchTransformer)
    ready_s, points, whole = time.monotonic() - begin_s, [], []

    def left_s() -> float:
        return float(options.budget_s) - (time.monotonic() - begin_s)

    for mixture in MIXTURES:
        rows, context, prompt = mixture if cuda else (mixture[0], min(256, mixture[1]), mixture[2])
        if left_s() < 0.4 * (options.budget_s - ready_s):
            break
        batch = batch_of(settings, rows, context, prompt)
        model.logits(batch)
        ms = timed(options.device, lambda each=batch: model.logits(each), options.repeats)  # type: ignore[misc]
        whole.append({"rows": rows, "context": context, "prompt_tokens": prompt, "ms": round(ms, 3)})
    for tokens in (each for each in BUCKETS if each <= (2048 if cuda else 128)):
        if left_s() < 1:
            break
        points.append([tokens, round(linear_ms(model, tokens, options.repeats), 3)])
    return {
        "name": f"{options.preset}-{options.name}",
        "source": f"scripts/gpu_check, PyTorch {torch.__version__}, {dtype_on(options.device)}",
        "gpu": torch.cuda.get_device_name() if cuda else "none, PyTorch on the CPU",
        "points": points,
        "attention": attention(points, whole),
        "whole_iterations": whole,
        "ready_s": round(ready_s, 1),
    }


def attention(points: list[list[float]], whole: list[dict[str, float]]) -> dict[str, float]:
    """Fit what whole iterations take on top of the linear layers; no cost is below 0."""
    tokens, ms = zip(*points, strict=True)
    counts = np.array([[1, w["rows"], w["rows"] * w["context"], w["prompt_tokens"]] for w in whole], float)
    above = np.array([w["ms"] - np.interp(w["rows"] + w["prompt_tokens"], tokens, ms) for w in whole])
    terms = list(range(counts.shape[1]))
    while terms:
        found = np.linalg.lstsq(counts[:, terms], above, rcond=None)[0]
        if found.min() >= 0:
            return {TERMS[term]: round(float(value), 7) for term, value in zip(terms, found, strict=True)} | {
                TERMS[term]: 0.0 for term in range(counts.shape[1]) if term not in terms
            }
        terms.pop(int(found.argmin()))
    return dict.fromkeys(TERMS, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--name", default="gpu")
    parser.add_argument("--budget-s", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    options.file.write_text(json.dumps(curve(options)) + "\n")


if __name__ == "__main__":
    main()
