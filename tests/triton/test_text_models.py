"""The two text models that run inside Triton end answers by the ids by which the sidecar does."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer

from sidecar.triton.tokenizer import Tokens
from tests.triton.model_directories import llama_like, mistral_like, qwen_like

TEXT = Path(__file__).parents[2] / "model_repository/text"
SKIPS = ("skip_special_tokens", "true")
MODELS = ("preprocessing", "postprocessing")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model's file as a module; Triton's own module is there by name alone."""
    return loaded(request.param, monkeypatch)


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    backend: Any = ModuleType("triton_python_backend_utils")
    backend.TritonModelException = RuntimeError
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    spec = importlib.util.spec_from_file_location(name, TEXT / name / "1/model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("build", [llama_like, qwen_like, mistral_like])
def test_a_text_model_ends_answers_as_the_sidecar_does(
    model: Any, build: Callable[[Path], Path], tmp_path: Path
) -> None:
    directory = build(tmp_path)
    tokenizer, ours = Tokenizer.from_file(str(directory / "tokenizer.json")), Tokens.load(directory)
    assert model.end_ids({}, directory, tokenizer) == [ours.end_id, *ours.further_end_ids]
    assert model.end_ids({"end_ids": {"string_value": "7 9"}}, directory, tokenizer) == [7, 9]


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ('{"eos_token_id": 0}', "{}", [0]),
        ('{"eos_token_id": [5, 5, 0]}', "{}", [5, 0]),
        ('{"eos_token_id": []}', '{"eos_token": "<|im_end|>"}', [258]),
        ('{"eos_token_id": null}', '{"eos_token": {"content": "<|im_end|>", "lstrip": false}}', [258]),
        (None, '{"eos_token": "<|im_end|>"}', [258]),
        ('{"eos_token_id": 99999}', "{}", None),
        ('{"eos_token_id": [true]}', "{}", None),
        ("{", "{}", None),
        (None, '{"eos_token": "<|nothing|>"}', None),
        (None, '{"eos_token": null}', None),
        (None, None, None),
    ],
)
def test_odd_files_are_read_as_the_sidecar_reads_them(
    model: Any, generation: str | None, config: str | None, ends: list[int] | None, tmp_path: Path
) -> None:
    directory = qwen_like(tmp_path)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for name, text in (("generation_config.json", generation), ("tokenizer_config.json", config)):
        (directory / name).unlink(missing_ok=True)
        if text is not None:
            (directory / name).write_text(text)

    def given(read: Callable[[], list[int]]) -> list[int] | None:
        try:
            return read()
        except Exception:
            return None

    def ours() -> list[int]:
        tokens = Tokens.load(directory)
        assert tokens.end_id is not None
        return [tokens.end_id, *tokens.further_end_ids]

    assert given(lambda: model.end_ids({}, directory, tokenizer)) == given(ours) == ends


def test_both_text_models_have_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [
        [inspect.getsource(getattr(module, name)) for name in ("end_ids", "read")]
        for module in (loaded(name, monkeypatch) for name in MODELS)
    ]
    assert rules[0] == rules[1]


def test_the_text_models_take_their_end_ids_from_one_parameter() -> None:
    for name in MODELS:
        config = (TEXT / name / "config.pbtxt").read_text()
        assert json.dumps("end_ids") in config


@pytest.mark.parametrize("build", [llama_like, qwen_like, mistral_like])
def test_the_pieces_of_a_stream_join_to_the_text_with_its_spaces_and_without_what_ends_it(
    build: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = loaded("postprocessing", monkeypatch)
    directory = build(tmp_path)
    ours = Tokens.load(directory)
    monkeypatch.setattr(module, "np", SimpleNamespace(__version__="1.26.4"))  # as in the server
    parameters = {name: {"string_value": value} for name, value in (("tokenizer_dir", str(directory)), SKIPS)}
    model = module.TritonPythonModel()
    model.initialize({"model_repository": "/", "model_config": json.dumps({"parameters": parameters})})
    ids = [*ours.encode_words("how far is it?"), *ours.further_end_ids, ours.end_id]
    assert b"".join(model._text([each]) for each in ids).strip() == b"how far is it?"
    assert model._text(ids).strip() == b"how far is it?"
