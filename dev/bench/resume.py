"""Whether slices are exact and cheap: items in slices of 16 tokens against one call each, greedy, on the CPU engine.

scripts/bench resume [--model toy|smollm2] [--items N] [--json FILE]       # FILE "-" = standard output
                     [--device cuda --preset 8b]                           # the PyTorch engine: scripts/gpu_check

`token_identical_ratio` compares token by token with the answer in one call, where another batch shares the iterations;
`items_identical` counts whole answers, and `again_identical` those of whole runs in another order, and so in other
batches: a resume can be no more exact than the engine is with itself. `reused_block_ratio` is the share of a resumed
prompt's blocks that were found in the cache.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dev.bench import _chat_model
from dev.bench._chat_model import CONTEXT
from dev.bench.engine import BATCHER, TOKENIZER
from dev.figures import one_blas_thread, ran_on, write
from engine.calls import EngineCall, OutputPart
from engine.numpy_engine import NumpyEngine, NumpySettings
from sidecar.inflight.batch import End
from sidecar.triton.tokenizer import Tokens

SLICE_TOKENS = 16
OUTPUT_TOKENS_MAX = {"toy": 1024, "smollm2": 96}
ITEMS = {"toy": 1000, "smollm2": 100}
SUBJECTS = ("river", "engine", "harbour", "lesson", "village", "schedule", "market", "bridge")


@dataclass(slots=True)
class SlicedRun:
    """One item and what it has been given."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...] = ()
    resumes: list[OutputPart] = field(default_factory=list)  # the last part of each call but the first


def prompts(model: str, count: int) -> list[tuple[int, ...]]:
    """Different prompts of the offline kind; of the chat model's at most as many as its bench has."""
    if model == "smollm2":
        with contextlib.closing(Tokens.load(_chat_model.FOLDER / "tokenizer.json")) as tokens:
            return [tuple(tokens.chat_ids([("user", each)], CONTEXT)) for each in _chat_model.ASKED[:count]]
    tokenizer: Any = Tokenizer.from_file(str(Path(TOKENIZER) / "tokenizer.json"))
    texts = (f"<|offline|>Describe the {SUBJECTS[n % len(SUBJECTS)]} in case {n}." for n in range(count))
    return [tuple(tokenizer.encode(text).ids) for text in texts]


def engine_for(model: str, preset: str = "small", device: str | None = None) -> NumpyEngine:
    """A new engine, with nothing in its cache."""
    folder, batch = TOKENIZER, BATCHER
    if model == "smollm2":
        folder, preset = _chat_model.FOLDER, model
        batch = replace(_chat_model.BATCHER, kv_tokens_max=64 * CONTEXT)
    return NumpyEngine(NumpySettings(tokenizer_dir=folder, preset=preset, device=device, batcher=batch))


def run(
    model: str, items: list[SlicedRun], slice_tokens: int | None = None, engine: NumpyEngine | None = None
) -> NumpyEngine:
    """Give every item its whole answer, in one call or in calls of `slice_tokens`; a finished slice is sent again at
    once. Return the engine that gave them."""
    engine, most = engine or engine_for(model), OUTPUT_TOKENS_MAX[model]
    end_id = engine.language.end_id if model == "toy" else _chat_model.END_ID

    def send(item: SlicedRun) -> None:
        rest = min(slice_tokens or most, most - len(item.ids))
        call = EngineCall(input_ids=item.prompt + item.ids, output_tokens_max=rest, end_id=end_id)
        engine.submit(call, heard(item))

    def heard(item: SlicedRun) -> Callable[[OutputPart], None]:
        def hear(part: OutputPart) -> None:
            if item.ids:
                item.resumes.append(part)
            item.ids += part.ids
            if part.end is End.LENGTH and len(item.ids) < most:
                send(item)

        return hear

    for item in items:
        send(item)
    while engine.step():
        pass
    return engine


def compare(model: str, count: int, shared: NumpyEngine | None = None) -> dict[str, Any]:
    """The figures for `count` items; each run has an engine of its own, or the shared one, which is large."""
    asked = prompts(model, count)
    whole, again, sliced = ([SlicedRun(prompt) for prompt in asked] for _ in range(3))
    run(model, whole, engine=shared)
    run(model, again[::-1], engine=shared)
    engine = run(model, sliced, SLICE_TOKENS, shared)
    figures = [part.figures for item in sliced for part in item.resumes if part.figures is not None]
    blocks = sum(each.reused_blocks + each.new_blocks for each in figures)
    pairs = [(len(one.ids), _equal_tokens(one.ids, other.ids)) for one, other in zip(whole, sliced, strict=True)]
    return {
        "model": model,
        "items": len(asked),
        "output_tokens": sum(tokens for tokens, _ in pairs),
        "slice_tokens": SLICE_TOKENS,
        "resumes": len(figures),
        "token_identical_ratio": round(sum(equal for _, equal in pairs) / sum(tokens for tokens, _ in pairs), 5),
        "items_identical": _equal_items(whole, sliced),
        "again_identical": _equal_items(whole, again),
        "reused_block_ratio": round(sum(each.reused_blocks for each in figures) / blocks, 4),
        "recomputed_tokens_per_resume": round(sum(each.computed_tokens for each in figures) / len(figures), 2),
        "tokens_per_block": engine.settings.batcher.tokens_per_block,
    }


def _equal_items(one: list[SlicedRun], other: list[SlicedRun]) -> int:
    return sum(left.ids == right.ids for left, right in zip(one, other, strict=True))


def _equal_tokens(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    return sum(a == b for a, b in zip(left, right, strict=False))


def main() -> None:
    one_blas_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=ITEMS, default="toy", help="the toy is exact; smollm2 is a real chat model")
    parser.add_argument("--items", type=int, metavar="N", help="1000; smollm2: 100, and no more")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - = standard output")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="compute in PyTorch there")
    parser.add_argument(
        "--preset", default="small", help="weights of the toy's vocabulary: small; with --device also 8b"
    )
    options = parser.parse_args()
    count = ITEMS[options.model] if options.items is None else options.items
    shared = options.device and engine_for(options.model, options.preset, options.device)
    write({**compare(options.model, count, shared), "ran_on": ran_on()}, options.json)


if __name__ == "__main__":
    main()
