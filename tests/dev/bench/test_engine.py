"""What the engine's bench measures: decoding rows, computing prompts, and keeping a pace."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dev.bench import engine as bench
from dev.bench.engine import engine_of, fill, iteration_s, overrun_ratio, prefill_tokens_per_s


def test_a_filled_engine_decodes_all_rows_to_the_length_that_was_asked() -> None:
    engine = engine_of("tiny")
    fill(engine, rows=8, output_tokens=5)
    assert engine.batcher.queued
    while engine.step():
        pass
    assert engine.batcher.rows == {}
    assert engine.batcher.iterations >= 5


def test_rows_have_prompts_of_their_own_so_that_no_cache_saves_the_work() -> None:
    prompts: list[tuple[int, ...]] = []
    language = engine_of("tiny").language
    listener: Any = SimpleNamespace(language=language, submit=lambda call, _: prompts.append(call.input_ids))
    fill(listener, rows=16, output_tokens=1)
    assert len(set(prompts)) == 16
    assert {len(each) for each in prompts} == {bench.PROMPT_TOKENS}


def test_a_unit_of_work_takes_time() -> None:
    assert 0 < iteration_s("tiny", rows=2, iterations=3) < 5
    assert prefill_tokens_per_s("tiny") > 1


def test_a_paced_engine_says_how_often_it_was_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "engine_of", lambda _, profile=None: engine_of("tiny", profile))
    found = overrun_ratio(0.2)
    assert 0 <= found["overrun_ratio"] <= 1
    assert found["paced_iteration_ms"] >= 0.9 * found["profile_iteration_ms"], "it waits for its profile"
