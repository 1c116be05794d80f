"""A model repository in which one server answers with four tokenizers: the chat model's own, and three families'.

The families share the toy engine, so their vocabularies are laid over its ids: what it says are words, and the ids by
which it ends an answer are the families' end ids.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dev.triton import ROOT
from tests.triton.model_directories import llama_like, mistral_like, qwen_like

REPOSITORY = ROOT / "model_repository"
CHAT = "smollm2"
PARTS = ("ensemble", "preprocessing", "postprocessing")
TOY = "toy"  # the engine model's name
# The toy ends an answer with its id 2, counts what it says from its last id 1, and says much if the first id is 3.
SAYS_MUCH, COUNTS_FROM, ENDS = 3, 1, 2
FAMILIES = {
    "llama": (llama_like, {"<|begin_of_text|>": SAYS_MUCH, "Ċ": COUNTS_FROM, "<|end_of_text|>": ENDS}),
    "qwen": (qwen_like, {"<|im_start|>": SAYS_MUCH, "Ċ": COUNTS_FROM, "<|im_end|>": ENDS}),
    "mistral": (mistral_like, {"<s>": SAYS_MUCH, "[/INST]": COUNTS_FROM, "</s>": ENDS}),
}
PROMPTS = {
    "llama": "how far is the sea\n",
    "qwen": "<|im_start|>how far is the sea\n",
    "mistral": "how far is the sea[/INST]",
    CHAT: "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
}
SENTENCE_ENDS = {"<|eom_id|>": "!", "<|eot_id|>": "."}  # the toy says them often: the further end ids of one family


def repository(directory: Path) -> Path:
    """The repository; text models of a family are named after it, as in `ensemble_llama`."""
    shutil.copytree(REPOSITORY, directory)
    toy = directory / "engine_python" / TOY
    shutil.copytree(directory / "engine_python/tensorrt_llm", toy)
    _edit(
        toy,
        {'name: "tensorrt_llm"': f'name: "{TOY}"', '"small"': '"tiny"', "../../tokenizer": REPOSITORY / "tokenizer"},
    )
    for name, (build, places) in FAMILIES.items():
        _lay_over_toy(build(directory / name), places)
        for part in PARTS:
            model = directory / "text" / f"{part}_{name}"
            shutil.copytree(directory / "text" / part, model)
            names = {f'name: "{each}"': f'name: "{each}_{name}"' for each in PARTS}
            _edit(model, {**names, 'name: "tensorrt_llm"': f'name: "{TOY}"', "../../tokenizer": directory / name})
    return directory


def _edit(model: Path, changes: Mapping[str, object]) -> None:
    file = model / "config.pbtxt"
    text = file.read_text()
    for old, new in changes.items():
        text = text.replace(old, str(new))
    file.write_text(text)


def _lay_over_toy(directory: Path, places: Mapping[str, int]) -> None:
    """Give the tokenizer the toy's words under the toy's ids, and its own tokens the ids that `places` says."""
    file, generation = directory / "tokenizer.json", directory / "generation_config.json"
    document = json.loads(file.read_text())
    toy = json.loads((REPOSITORY / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    added = {each["content"]: each["id"] for each in document["added_tokens"]}
    vocabulary: dict[str, int] = document["model"]["vocab"] | added
    space = "▁" if "▁" in vocabulary else "Ġ"
    size = len(vocabulary)
    vocabulary |= {word.replace("Ġ", space): at for word, at in toy.items() if at >= size}
    before = {at: token for token, at in vocabulary.items()}
    wanted = {**places, **{token: toy[sign] for token, sign in SENTENCE_ENDS.items() if token in vocabulary}}
    for token, at in wanted.items():
        _swap(vocabulary, token, at)
    document["model"]["vocab"] = vocabulary
    document["added_tokens"] = sorted(
        ({**each, "id": vocabulary[each["content"]]} for each in document["added_tokens"]), key=lambda each: each["id"]
    )
    processor: Any = document["post_processor"] or {"special_tokens": {}}
    for each in processor["special_tokens"].values():
        each["ids"] = [vocabulary[token] for token in each["tokens"]]
    file.write_text(json.dumps(document))
    if generation.exists():
        ends = json.loads(generation.read_text())["eos_token_id"]
        moved = [vocabulary[before[at]] for at in (ends if isinstance(ends, list) else [ends])]
        generation.write_text(json.dumps({"eos_token_id": moved}))


def _swap(vocabulary: dict[str, int], token: str, at: int) -> None:
    other = next(name for name, number in vocabulary.items() if number == at)
    vocabulary[other], vocabulary[token] = vocabulary[token], at
