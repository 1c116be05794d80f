"""What `sidecar doctor` says: of a model's directory (how answers end, whether chats are served), and of sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.cli.operate import findings, size_findings
from sidecar.settings.file import EngineEndpoint, ServeSettings
from sidecar.triton.engine_size import EngineSize
from tests.triton.model_directories import bert_like, llama_like, mistral_like, qwen_like, t5_like, words_like

GAUGE = EngineSize(source='its gauge request_type="max"', sequences_max=64, kv_tokens=499_277)
CHAT = ("ok", "chat template: it takes a user's message")


async def said(directory: Path, end_ids: tuple[int, ...] = ()) -> list[tuple[str, str]]:
    """The findings about the tokenizer; no engine answers there."""
    engine = EngineEndpoint(name="e", target="127.0.0.1:1", slots=1)
    settings = ServeSettings(engines=(engine,), tokenizer=directory, end_ids=end_ids)
    return [(verdict, text) async for verdict, text in findings(settings) if not text.startswith("engine ")]


@pytest.mark.parametrize(
    ("build", "ends"),
    [
        (llama_like, "end ids 257, 260, 261"),
        (qwen_like, "end id 258"),
        (mistral_like, "end id 2"),
        (t5_like, "end id 1"),
        (bert_like, "end id 3"),
        (words_like, "end id 1"),
    ],
)
async def test_each_family_is_taken_as_it_is(build: Callable[[Path], Path], ends: str, tmp_path: Path) -> None:
    assert await said(build(tmp_path)) == [("ok", f"tokenizer: {tmp_path}, {ends}"), CHAT]
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    assert await said(tmp_path, (0, 1)) == [("ok", f"tokenizer: {tmp_path}, end ids 0, 1"), CHAT]


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (None, "the model has no chat template"),
        ([], "the model has no chat template"),
        ("", "the model has no chat template"),
        ("{% if %}", "the chat template does not compile: TemplateSyntaxError"),
        ("{{ raise_exception('only tools') }}", "the chat template refuses these messages: only tools"),
        ("hello", "the chat template does not show messages[0] (role user) exactly once"),
    ],
)
async def test_a_model_that_serves_no_chat_is_a_warning_with_the_reason(
    template: object, fault: str, tmp_path: Path
) -> None:
    qwen_like(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": template}))
    told = f"chat template: {fault}; items with messages are refused"
    assert await said(tmp_path) == [("ok", f"tokenizer: {tmp_path}, end id 258"), ("warning", told)]


async def test_what_cannot_be_a_tokenizer_or_cannot_end_is_a_failure_with_the_reason(tmp_path: Path) -> None:
    assert await said(tmp_path) == [("FAILED", f"{tmp_path} holds no tokenizer.json")]
    qwen_like(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|nothing|>"}')
    told = f"{tmp_path}/tokenizer.json has no token '<|nothing|>', the eos_token of tokenizer_config.json"
    assert await said(tmp_path) == [("FAILED", told)]
    (tmp_path / "tokenizer_config.json").unlink()
    [(verdict, told)] = await said(tmp_path)
    assert (verdict, told.endswith("says what ends an answer; add one, or state end_ids")) == ("FAILED", True)


def verdicts(engine: EngineEndpoint, *sizes: EngineSize) -> list[str]:
    return [verdict for verdict, _ in size_findings(engine, sizes)]


def test_settings_within_what_the_engine_has_are_ok() -> None:
    engine = EngineEndpoint(name="e0", slots=60, tokens_max=4096)
    assert list(size_findings(engine, [GAUGE])) == [("ok", "60 slots of 4096 tokens are within what it has")]
    assert list(size_findings(engine, [EngineSize(source="its gauge")])) == []  # nobody says anything


def test_more_than_the_engine_has_fails() -> None:
    assert verdicts(EngineEndpoint(name="e0", slots=65, tokens_max=4096), GAUGE) == ["FAILED"]


def test_far_less_is_a_warning() -> None:
    assert verdicts(EngineEndpoint(name="e0", slots=8, tokens_max=4096), GAUGE) == ["warning", "ok"]


def test_a_cache_that_binds_before_the_slots_is_said_with_the_sequences_that_fit() -> None:
    _, (verdict, told) = size_findings(EngineEndpoint(name="e0", slots=60, tokens_max=16_384), [GAUGE])
    assert verdict == "ok"
    assert told.startswith("its KV cache of 499,277 tokens holds 30 sequences of 16384 tokens: with long ones it binds")
