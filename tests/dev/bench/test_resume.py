"""Items that run in slices are set beside the same items whole, token by token."""

from __future__ import annotations

import pytest

from dev.bench import resume
from dev.bench.engine import engine_of
from dev.bench.resume import SLICE_TOKENS, SlicedRun, compare, prompts, run


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "engine_for", lambda _: engine_of("tiny"))
    monkeypatch.setitem(resume.OUTPUT_TOKENS_MAX, "toy", 40)


def test_a_sliced_item_is_sent_again_until_it_has_its_whole_answer() -> None:
    items = [SlicedRun(each) for each in prompts("toy", 6)]
    run("toy", items, SLICE_TOKENS)
    assert all(len(each.ids) <= 40 for each in items)
    for each in items:
        assert len(each.resumes) == (max(len(each.ids), 1) - 1) // SLICE_TOKENS


def test_slices_give_the_tokens_of_the_whole_run_and_compute_little_again() -> None:
    found = compare("toy", 6)
    assert (found["token_identical_ratio"], found["items_identical"], found["again_identical"]) == (1.0, 6, 6)
    assert found["resumes"] >= 6
    assert found["reused_block_ratio"] > 0.5
    assert found["recomputed_tokens_per_resume"] <= found["tokens_per_block"]


def test_prompts_are_different_and_of_the_offline_kind() -> None:
    found = prompts("toy", 20)
    assert len(set(found)) == 20
    assert len({each[0] for each in found}) == 1, "the marker that makes the engine draw a long answer"
