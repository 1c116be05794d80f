"""The chat model that setup writes, in the real Triton: it answers, and its answer ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from dev.triton import ENGINE_MODEL, TritonSettings, running
from sidecar.triton.client import EngineClient

pytestmark = pytest.mark.integration


async def test_the_capital_of_france_is_paris(tmp_path: Path) -> None:
    settings = TritonSettings(model="smollm2", slots=2)
    tokenizer = Tokenizer.from_file(str(settings.tokenizer_dir / "tokenizer.json"))
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    prompt = tuple(tokenizer.encode(text, add_special_tokens=False).ids)
    async with running(tmp_path, settings) as triton, EngineClient(triton.target, triton.keys) as client:
        ids = await client.generate(ENGINE_MODEL, prompt, 8, 30.0)
    answer = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert answer.strip().startswith("The capital of France is Paris.")
