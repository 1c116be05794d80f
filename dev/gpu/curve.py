"""How long an iteration takes on this GPU, as a profile file: python -m dev.gpu.curve PRESET FILE DEVICE SECONDS

`points` are [tokens, ms] of iterations of so many rows that see one token each: what all tokens of an iteration share.
`attention` is what comes on top, fitted to other mixtures: ms per iteration, per row, per token of context of a
decoding row, and per prompt token.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dev.gpu import TOKENIZER
from engine.models import CHAT, model_of
from engine.torch_model import BUCKETS
from engine.transformer import FlatBatch, FlatChunk
from sidecar.inflight.batch import BatcherSettings

TERMS = ("iteration_ms", "row_ms", "context_token_ms", "prompt_token_ms")
MIXTURES = (  # decoding rows, context tokens of each, prompt tokens
    *((rows, context, 0) for rows in (1, 16, 32, 64) for context in (256, 1024, 3584)),
    *((rows, 1024, prompt) for rows in (0, 16, 48) for prompt in (64, 128, 256, 448)),
)


def batch_of(settings: BatcherSettings, rows: int, context: int, prompt: int) -> FlatBatch:
    """An iteration whose rows have blocks of their own, as far as there are blocks."""
    size, blocks = settings.tokens_per_block, settings.blocks_max
    each = context // size + 1
    tables = [np.arange(row * each, (row + 1) * each) % blocks for row in range(rows)]
    table, places = np.arange(rows * each, rows * each + -(-prompt // size)) % blocks, np.arange(prompt)
    slots = [table[-1] * size + context % size for table in tables]
    return FlatBatch(
        ids=np.arange(rows + prompt) % 400 + 60,
        positions=np.array([context] * rows + list(range(prompt))),
        slots=np.array([*slots, *(table[places // size] * size + places % size)]),
        tables=tables,
        chunks=[FlatChunk(begin=rows, tokens=prompt, table=table)] if prompt else [],
        wanted=np.arange(min(64, rows + prompt)),
    )


def curve(preset: str, device: str, budget_s: float) -> dict[str, Any]:
    """Measure within the budget: first whole iterations, then the curve of tokens."""
    begin_s, cuda = time.monotonic(), device != "cpu"
    most, longest, cache = (2048, 4096, 240_000) if cuda else (512, 512, 16_384)
    sizes = BatcherSettings(max_num_tokens=most, max_seq_len=longest, kv_tokens_max=cache, tokens_per_block=64)
    _, model = model_of(TOKENIZER[preset == CHAT], preset, 0, sizes, device)

    def iteration_ms(rows: int, context: int, prompt: int) -> float:
        batch, found = batch_of(sizes, rows, context, prompt), []
        for _ in range(1 + (7 if cuda else 2)):
            at_s = time.perf_counter()
            model.logits(batch)  # it ends with a copy to the CPU
            found.append(1e3 * (time.perf_counter() - at_s))
        return round(statistics.median(found[1:]), 3)

    ready_s, points, whole = time.monotonic() - begin_s, [], []
    for rows, context, prompt in MIXTURES:
        context = context if cuda else min(context, 256)
        whole.append(
            {"rows": rows, "context": context, "prompt_tokens": prompt, "ms": iteration_ms(rows, context, prompt)}
        )
        if time.monotonic() - begin_s > ready_s + 0.6 * (budget_s - ready_s):
            break
    for tokens in (each for each in BUCKETS if each <= (2048 if cuda else 128)):
        points.append([tokens, iteration_ms(tokens, 0, 0)])
        if time.monotonic() - begin_s > budget_s - 1:
            break
    gpu = torch.cuda.get_device_name() if cuda else "CPU"
    return {
        "name": f"{preset}-{gpu.lower().replace(' ', '-')}",
        "source": f"scripts/gpu_check, PyTorch {torch.__version__}, {'bfloat16' if cuda else 'float32'}",
        "gpu": gpu,
        "points": points,
        "attention": attention(points, whole),
        "whole_iterations": whole,
        "ready_s": round(ready_s, 1),
    }


def attention(points: list[list[float]], whole: list[dict[str, float]]) -> dict[str, float]:
    """Fit what whole iterations take on top of the curve; no cost is below 0."""
    tokens, ms = zip(*points, strict=True)
    counts = np.array([[1, w["rows"], w["rows"] * w["context"], w["prompt_tokens"]] for w in whole], float)
    above = np.array([w["ms"] - np.interp(w["rows"] + w["prompt_tokens"], tokens, ms) for w in whole])
    terms = list(range(len(TERMS)))
    while terms:
        found = np.linalg.lstsq(counts[:, terms], above, rcond=None)[0]
        if found.min() >= 0:
            break
        terms.pop(int(found.argmin()))
    return dict.fromkeys(TERMS, 0.0) | {TERMS[term]: round(float(found[n]), 7) for n, term in enumerate(terms)}


if __name__ == "__main__":
    preset_, file, device_, seconds = sys.argv[1:]
    Path(file).write_text(json.dumps(curve(preset_, device_, float(seconds))) + "\n")
