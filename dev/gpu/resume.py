"""Whether slices say what a whole run says on this device: python -m dev.gpu.resume PRESET FILE …

Greedy, of random weights: near-ties everywhere, the worst case. Whole runs in another order say how exact the engine is
with itself; slices that are resumed can be no better.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event
from typing import Any

from engine.calls import EngineCall, OutputPart
from engine.numpy_engine import NumpyEngine, NumpySettings
from sidecar.inflight.batch import BatcherSettings

TOKENS = 128
SLICE_TOKENS = 32
Answers = dict[int, list[int]]


def ask(engine: NumpyEngine, ids: Iterable[int], tokens: int) -> tuple[Event, list[int]]:
    """Submit one call; the event is set when the list holds its whole answer."""
    ended, heard = Event(), list[int]()

    def hear(part: OutputPart) -> None:
        heard.extend(part.ids)
        if part.final:
            ended.set()

    engine.submit(EngineCall(input_ids=tuple(ids), output_tokens_max=tokens), hear)
    return ended, heard


def answers(engine: NumpyEngine, prompts: list[list[int]], slice_tokens: int, order: Iterable[int]) -> Answers:
    """Return what each prompt is answered with, in slices of so many tokens."""
    found: Answers = {number: [] for number in order}
    while short := [number for number, ids in found.items() if len(ids) < TOKENS]:
        asked = {
            number: ask(engine, prompts[number] + found[number], min(slice_tokens, TOKENS - len(found[number])))
            for number in short
        }
        for number, (ended, heard) in asked.items():
            if not ended.wait(120) or engine.broken or not heard:
                raise RuntimeError(f"no answer: {engine.broken}")
            found[number] += heard
    return found


def compared(one: Answers, other: Answers) -> dict[str, Any]:
    """Return the share of equal answers, and where the others begin to differ."""
    first = sorted(
        next(place for place, (a, b) in enumerate(zip(ids, other[number], strict=True)) if a != b)
        for number, ids in one.items()
        if ids != other[number]
    )
    return {
        "same": round(1 - len(first) / len(one), 4),
        "first_difference_median": first[len(first) // 2] if first else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--items", type=int, default=96)
    options = parser.parse_args()
    begin_s, draw = time.monotonic(), random.Random(3)
    batcher = BatcherSettings(
        max_batch_size=64, max_seq_len=2048, max_num_tokens=512, kv_tokens_max=65_536, tokens_per_block=64
    )
    folder = Path(__file__).parents[2] / "model_repository/tokenizer"
    engine = NumpyEngine(
        NumpySettings(tokenizer_dir=folder, preset=options.preset, device=options.device, batcher=batcher)
    )
    engine.start()
    prompts = [[draw.randrange(60, 500) for _ in range(draw.randint(50, 400))] for _ in range(options.items)]
    numbers = range(options.items)
    run: Callable[..., Answers] = lambda size, order: answers(engine, prompts, size, order)  # noqa: E731
    whole = run(TOKENS, numbers)
    figures = {
        "preset": options.preset,
        "items": options.items,
        "tokens": TOKENS,
        "slice_tokens": SLICE_TOKENS,
        "whole_in_another_order": compared(whole, run(TOKENS, reversed(numbers))),
        "sliced_and_resumed": compared(whole, run(SLICE_TOKENS, numbers)),
        "distinct_answers": len({tuple(ids) for ids in whole.values()}),
        "seconds": round(time.monotonic() - begin_s, 1),
    }
    engine.close()
    options.file.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
