"""What the CPU engine does: iterations per second by rows, prefill, and whether 64 rows hold the pace of a 70B model.

scripts/bench engine [--seconds S] [--json FILE]       # FILE "-" = standard output
scripts/bench engine --model smollm2 [--json FILE]     # the chat model: dev/bench/_chat_model.py says what

`memory_bound` is the preset whose weights exceed the last-level cache; `cost_of_8_rows` is its iteration time with
eight rows ÷ with one, and `throughput` its tokens per second relative to one row. Iterations are timed in CPU time of
the thread, which is what they take on a core of their own; the paced part, on the wall clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dev.bench import _chat_model
from dev.figures import one_blas_thread, ran_on, write
from dev.triton import MODELS
from engine.calls import EngineCall, OutputPart
from engine.numpy_engine import NumpyEngine, NumpySettings
from sidecar.inflight.batch import BatcherSettings
from sidecar.inflight.profile import profile_named

TOKENIZER = Path(__file__).parents[2] / "model_repository/tokenizer"
ROWS = (1, 8, 16, 32, 64)
PROMPT_TOKENS = 64
PACED = "70b-tp4-a100"
BATCHER = BatcherSettings(max_batch_size=64, max_seq_len=2048, max_num_tokens=512, kv_tokens_max=81_920)


def engine_of(preset: str, profile: str | None = None) -> NumpyEngine:
    settings = NumpySettings(tokenizer_dir=TOKENIZER, preset=preset, batcher=BATCHER)
    return NumpyEngine(replace(settings, profile=profile_named(profile)) if profile else settings)


def fill(engine: NumpyEngine, rows: int, output_tokens: int, prompt_tokens: int = PROMPT_TOKENS) -> None:
    """Submit `rows` calls with different prompts that end only by their length."""
    random = np.random.default_rng(rows)
    for _ in range(rows):
        ids = tuple(random.choice(engine.language.readable, prompt_tokens).tolist())
        engine.submit(EngineCall(input_ids=ids, output_tokens_max=output_tokens, streaming=True), _ignore)


def _ignore(_: OutputPart) -> None:
    pass


def iteration_s(preset: str, rows: int, iterations: int) -> float:
    """Median CPU seconds of an iteration that decodes `rows` rows of some 64 to 64 + `iterations` tokens."""
    engine = engine_of(preset)
    fill(engine, rows, iterations + 32)
    while engine.batcher.queued or any(not row.output_ids for row in engine.batcher.rows.values()):
        engine.step()  # until the last prompt is computed
    return statistics.median(_timed(engine) for _ in range(iterations))


def _timed(engine: NumpyEngine) -> float:
    began = time.thread_time()
    engine.step()
    return time.thread_time() - began


def prefill_tokens_per_s(preset: str) -> float:
    """Prompt tokens per CPU second when an engine does nothing else, in chunks of its max_num_tokens."""
    engine = engine_of(preset)
    fill(engine, 8, 1, prompt_tokens=1000)
    began = time.thread_time()
    while engine.step():
        pass
    return 8 * 1000 / (time.thread_time() - began)


def overrun_ratio(seconds: float) -> dict[str, float]:
    """Iterations over their time ÷ iterations, with 64 rows decoding at the pace of the 70B profile."""
    engine = engine_of("small", PACED)
    budget_s = profile_named(PACED).iteration_s(64, 0)
    fill(engine, 64, 64 + int(seconds / budget_s))
    while engine.batcher.queued or any(not row.output_ids for row in engine.batcher.rows.values()):
        engine.step()
    overruns, iterations, began = engine.overruns, engine.batcher.iterations, time.perf_counter()
    while time.perf_counter() - began < seconds and engine.step():
        pass
    spent_s, iterations = time.perf_counter() - began, engine.batcher.iterations - iterations
    return {
        "overrun_ratio": round((engine.overruns - overruns) / iterations, 4),
        "paced_iteration_ms": round(spent_s / iterations * 1000, 2),
        "profile_iteration_ms": round(budget_s * 1000, 2),
    }


def memory_bound(iterations: int) -> dict[str, Any]:
    """The preset that does not fit the last-level cache, by rows."""
    spent_s = {rows: iteration_s("large", rows, iterations) for rows in (1, 4, 8, 16)}
    return {
        "weights_mb": round(engine_of("large").weight_bytes / 1e6),
        "iteration_ms": {str(rows): round(each * 1000, 2) for rows, each in spent_s.items()},
        "cost_of_8_rows": round(spent_s[8] / spent_s[1], 2),
        "throughput": {str(rows): round(rows * spent_s[1] / each, 2) for rows, each in spent_s.items()},
    }


def main() -> None:
    one_blas_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the paced part")
    parser.add_argument("--iterations", type=int, default=40, help="per measurement of the other parts")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - = standard output")
    parser.add_argument("--model", default="toy", choices=MODELS, help="of the engine (%(default)s)")
    options = parser.parse_args()
    if options.model != "toy":
        write({**_chat_model.figures(options.iterations), "ran_on": {**ran_on(), "engine_profile": None}}, options.json)
        return
    figures = {
        "steps_per_s": {str(rows): round(1 / iteration_s("small", rows, options.iterations), 1) for rows in ROWS},
        "prefill_tokens_per_s": round(prefill_tokens_per_s("small")),
        **overrun_ratio(options.seconds),
        "memory_bound": memory_bound(options.iterations),
        "ran_on": {**ran_on(), "engine_profile": PACED},
    }
    write(figures, options.json)


if __name__ == "__main__":
    main()
