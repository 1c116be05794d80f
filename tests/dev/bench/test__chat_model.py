"""The chat model's bench: answers, how far two models agree, and how long an iteration takes, on a small model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dev.bench import _chat_model as bench
from dev.chat_model import model_of, save_model
from tests.engine.test_chat_model import SHAPE, VOCABULARY, WEIGHTS

PROMPTS = [tuple(np.random.default_rng(seed).integers(3, VOCABULARY, 20).tolist()) for seed in range(4)]


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(model_of(SHAPE, WEIGHTS), tmp_path)
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "ANSWER_TOKENS", 12)


def test_an_answer_ends_with_its_end_id_or_at_its_length() -> None:
    for answer in bench.answers(bench.FOLDER, PROMPTS):
        assert 1 <= len(answer) <= 12
        assert bench.END_ID not in answer[:-1]


def test_a_model_agrees_with_itself_and_not_with_another() -> None:
    answers = bench.answers(bench.FOLDER, PROMPTS)
    same = bench.agreement(PROMPTS, answers)
    assert (same["prompts"], same["same_ratio"], same["answers_all_same"]) == (4, 1.0, 4)
    assert same["tokens"] == sum(map(len, answers))
    other = bench.agreement(PROMPTS, [tuple((id_ + 1) % VOCABULARY for id_ in answer) for answer in answers])
    assert other["same_ratio"] < 1
    assert other["answers_all_same"] == 0
