"""What several engine tests build: the committed language, a tiny engine without a thread, calls."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.calls import EngineCall, OutputPart
from engine.language import Language
from engine.lengths import output_length
from engine.numpy_engine import NumpyEngine, NumpySettings
from sidecar.inflight.batch import BatcherSettings

FOLDER = Path(__file__).parents[2] / "model_repository/tokenizer"
TOKENIZER: Any = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
LANGUAGE = Language.load(FOLDER)


def ids_of(text: str) -> tuple[int, ...]:
    """The ids of a prompt, end-of-prompt marker included."""
    return tuple(TOKENIZER.encode(text).ids)


def words_of(text: str) -> tuple[int, ...]:
    """The ids of a piece of output."""
    return tuple(TOKENIZER.encode(text, add_special_tokens=False).ids)


def tiny_engine(**batcher: Any) -> NumpyEngine:
    """An engine that runs when told: see `run`."""
    settings: dict[str, Any] = {"max_batch_size": 4, "max_seq_len": 512, "max_num_tokens": 64, "kv_tokens_max": 4096}
    settings |= {"tokens_per_block": 8, **batcher}
    return NumpyEngine(NumpySettings(tokenizer_dir=FOLDER, preset="tiny", batcher=BatcherSettings(**settings)))


def call(text: str, output: int = 20, **more: Any) -> EngineCall:
    return EngineCall(input_ids=ids_of(text), output_tokens_max=output, **{"streaming": True, **more})


def run(engine: NumpyEngine, *calls: EngineCall) -> list[list[OutputPart]]:
    """Every piece of each call, run together until the engine is idle."""
    parts: list[list[OutputPart]] = [[] for _ in calls]
    for each, heard in zip(calls, parts, strict=True):
        engine.submit(each, heard.append)
    while engine.step():
        pass
    return parts


def tokens(parts: list[OutputPart]) -> tuple[int, ...]:
    return tuple(id_ for part in parts for id_ in part.ids)


@cache
def offline_prompt(length: int) -> str:
    """The first prompt of the offline kind that the engine answers with `length` tokens or more."""
    for number in range(10_000):
        text = f"<|offline|>Describe the river {number}"
        if output_length(ids_of(text), LANGUAGE, 0) >= length:
            return text
    raise AssertionError(length)
