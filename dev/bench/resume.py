"""Whether slices are exact and cheap: items in slices of 16 tokens against one call each, greedy, on the CPU engine.

scripts/bench resume [--items N] [--json FILE]       # FILE "-" = standard output

`token_identical_ratio` compares token by token with the answer in one call, where another batch shares the iterations;
`reused_block_ratio` is the share of a resumed prompt's blocks that were found in the cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dev.bench._figures import one_blas_thread, ran_on, write
from dev.bench.engine import TOKENIZER, engine_of
from engine.calls import EngineCall, OutputPart
from engine.numpy_engine import NumpyEngine
from sidecar.inflight.batch import End

SLICE_TOKENS = 16
OUTPUT_TOKENS_MAX = 1024
SUBJECTS = ("river", "engine", "harbour", "lesson", "village", "schedule", "market", "bridge")


@dataclass(slots=True)
class SlicedRun:
    """One item and what it has been given."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...] = ()
    resumes: list[OutputPart] = field(default_factory=list)  # the last part of each call but the first


def prompts(count: int) -> list[tuple[int, ...]]:
    """Different prompts of the offline kind."""
    tokenizer: Any = Tokenizer.from_file(str(Path(TOKENIZER) / "tokenizer.json"))
    texts = (f"<|offline|>Describe the {SUBJECTS[n % len(SUBJECTS)]} in case {n}." for n in range(count))
    return [tuple(tokenizer.encode(text).ids) for text in texts]


def run(engine: NumpyEngine, items: list[SlicedRun], slice_tokens: int) -> None:
    """Give every item its whole answer, in calls of `slice_tokens`; a finished slice is sent again at once."""

    def send(item: SlicedRun) -> None:
        rest = min(slice_tokens, OUTPUT_TOKENS_MAX - len(item.ids))
        call = EngineCall(input_ids=item.prompt + item.ids, output_tokens_max=rest, end_id=engine.language.end_id)
        engine.submit(call, heard(item))

    def heard(item: SlicedRun) -> Callable[[OutputPart], None]:
        def hear(part: OutputPart) -> None:
            if item.ids:
                item.resumes.append(part)
            item.ids += part.ids
            if part.end is End.LENGTH and len(item.ids) < OUTPUT_TOKENS_MAX:
                send(item)

        return hear

    for item in items:
        send(item)
    while engine.step():
        pass


def compare(count: int) -> dict[str, Any]:
    """The figures for `count` items."""
    sliced = [SlicedRun(prompt) for prompt in prompts(count)]
    whole = [replace(item) for item in sliced]
    run(engine_of("small"), whole, OUTPUT_TOKENS_MAX)
    engine = engine_of("small")
    run(engine, sliced, SLICE_TOKENS)
    figures = [part.figures for item in sliced for part in item.resumes if part.figures is not None]
    blocks = sum(each.reused_blocks + each.new_blocks for each in figures)
    pairs = [(len(one.ids), _equal_tokens(one.ids, other.ids)) for one, other in zip(whole, sliced, strict=True)]
    return {
        "items": count,
        "output_tokens": sum(tokens for tokens, _ in pairs),
        "slice_tokens": SLICE_TOKENS,
        "resumes": len(figures),
        "token_identical_ratio": round(sum(equal for _, equal in pairs) / sum(tokens for tokens, _ in pairs), 5),
        "items_identical": sum(one.ids == other.ids for one, other in zip(whole, sliced, strict=True)),
        "reused_block_ratio": round(sum(each.reused_blocks for each in figures) / blocks, 4),
        "recomputed_tokens_per_resume": round(sum(each.computed_tokens for each in figures) / len(figures), 2),
        "tokens_per_block": engine.settings.batcher.tokens_per_block,
    }


def _equal_tokens(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    return sum(a == b for a, b in zip(left, right, strict=False))


def main() -> None:
    one_blas_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - = standard output")
    options = parser.parse_args()
    write({**compare(options.items), "ran_on": ran_on()}, options.json)


if __name__ == "__main__":
    main()
