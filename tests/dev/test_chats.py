"""What the demo asks a real chat model."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from dev.chats import QUESTIONS, SYSTEM, ChatPrompts, asked_of, items, show_answers, show_lanes
from dev.load import arrivals
from sidecar.triton.tokenizer import Tokens
from tests.triton.model_directories import llama_like


def test_a_callers_prompt_is_what_the_models_template_writes_of_the_question(tmp_path: Path) -> None:
    folder = llama_like(tmp_path)
    tokens, callers = Tokens.load(folder), ChatPrompts(folder)
    for each in arrivals(rate_per_s=2.0, seconds=10.0, seed=1, prompt_of=callers):
        assert each.question in QUESTIONS
        wanted = tokens.chat_ids([("system", SYSTEM), ("user", each.question)], 2048)
        assert tokens.encode_words(each.prompt) == wanted
    assert callers(random.Random(1)) == callers(random.Random(1))


def test_items_are_labels_and_summaries_in_both_formats_and_some_are_bad() -> None:
    lines = list(items(count=200, seed=1))
    asked = asked_of(lines)
    assert len(lines) - len(asked) == 2
    assert lines == list(items(count=200, seed=1)) != list(items(count=200, seed=2))
    summaries = [name for name, text in asked.items() if text.startswith("Summarize")]
    assert len(summaries) == pytest.approx(40, abs=2)
    good = {key.decode(): json.loads(value) for key, value in lines if key.decode() in asked}
    bodies = {name: line.get("body", line) for name, line in good.items()}
    assert {name for name, body in bodies.items() if "stop" not in body} == set(summaries)
    assert {"body" in line for line in good.values()} == {True, False}


def test_long_answers_are_shortened_and_markup_in_them_is_text() -> None:
    console = Console(file=io.StringIO(), width=80)
    show_answers(console, "Some", [{"asked": "why [bold]?", "answer": "because " * 100}])
    assert isinstance(console.file, io.StringIO)
    title, asked, answer = console.file.getvalue().splitlines()
    assert (title, asked) == ("Some", "  ? why [bold]?")
    assert answer.endswith("[...]")
    assert len(answer) <= 244


def test_after_the_answers_stands_where_the_others_are() -> None:
    file = io.StringIO()
    show_lanes(Console(file=file, width=80), {})
    assert file.getvalue() == ""
    show_lanes(Console(file=file, width=80), {"offline": [{"asked": "why?", "answer": "so"}]})
    assert file.getvalue().splitlines()[0] == "Some offline answers"
    assert "results topic" in file.getvalue().splitlines()[-1]
