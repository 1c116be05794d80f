"""Measured iteration times: the points as they are, attention on top, and a reader that says what is wrong."""

from __future__ import annotations

import json
from importlib import resources
from statistics import fmean
from typing import Any

import pytest

from sidecar.inflight.batch import BatchedSequence, BatcherSettings
from sidecar.inflight.batcher import Batcher
from sidecar.inflight.measured import MeasuredProfile, measured_profile
from sidecar.inflight.profile import MEASURED, PROFILES, IterationTimes, profile_named, step_s

FILE: dict[str, Any] = {
    "name": "steps",
    "source": "a test",
    "gpu": "none",
    "points": [[1, 10.0], [64, 11.0], [72, 15.0], [128, 16.0]],
    "attention": {"iteration_ms": 1.0, "row_ms": 0.1, "context_token_ms": 0.001, "prompt_token_ms": 0.01},
}


def profile(**changes: Any) -> MeasuredProfile:
    return measured_profile(json.dumps({**FILE, **changes}))


def ms(times: IterationTimes, rows: int, prompt: int, context: float = 0.0, pairs: float = 0.0) -> float:
    return 1000 * times.iteration_s(rows, prompt, context, pairs)


def test_the_points_are_kept_and_joined_by_straight_lines() -> None:
    bare = profile(attention={})
    assert [ms(bare, rows, 0) for rows in (0, 1, 64, 68, 72, 128)] == pytest.approx([10, 10, 11, 13, 15, 16])


def test_the_last_slope_goes_on_behind_the_last_point() -> None:
    assert ms(profile(attention={}), 0, 128 + 56) == pytest.approx(17)


def test_rows_and_prompt_tokens_stand_on_one_curve_and_attention_on_top_of_it() -> None:
    assert ms(profile(), 32, 32, context=2000) == pytest.approx(11 + 1 + 3.2 + 0.32 + 2.0)


def test_further_fields_of_a_file_are_for_the_reader() -> None:
    assert profile(ready_s=3.0, whole_iterations=[]) == profile()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, "`name`"),
        ({"points": [[1, 10.0]]}, "two or more"),
        ({"points": [[8, 10.0], [8, 11.0]]}, "rising"),
        ({"points": [[1, 10.0], [8, -1.0]]}, "times > 0"),
        ({"points": [[1, "10"], [8, 11.0]]}, "numbers"),
        ({"points": [[1, 10.0, 3], [8, 11.0]]}, "pairs"),
        ({"points": {}}, "list"),
        ({"attention": {"row": 1.0}}, "not row"),
        ({"attention": []}, "terms"),
        ({"attention": {"row_ms": True}}, "numbers"),
        ({"attention": {"row_ms": -1.0}}, "costs >= 0"),
        ({"kv_tokens_max": 0}, "kv_tokens_max"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        profile(**changes)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        measured_profile(text)


@pytest.mark.parametrize("name", MEASURED)
def test_a_carried_profile_has_the_name_of_its_file_and_says_where_it_is_from(name: str) -> None:
    found = PROFILES[name]
    assert isinstance(found, MeasuredProfile)
    assert found.name == name
    assert len(found.source) > 40


def test_an_a100_is_flat_up_to_64_tokens_and_climbs_in_steps_behind_tile_boundaries() -> None:
    times = profile_named("70b-tp4-a100-measured")
    assert ms(times, 64, 0) - ms(times, 8, 0) == pytest.approx(1.2 + 56 * 0.033)
    assert ms(times, 8, 64) - ms(times, 8, 56) == pytest.approx(31.52 - 27.12 + 8 * 0.033)
    assert ms(times, 0, 416) - ms(times, 0, 384) > ms(times, 0, 384) - ms(times, 0, 288)


def test_the_profile_of_an_8b_on_an_h100_gives_back_the_whole_iterations_that_were_measured() -> None:
    """The one before it, from decode iterations of another day, gave 10 % too little, and 25 % with prompts."""
    times = profile_named("8b-h100-measured")
    file = resources.files("sidecar.inflight").joinpath("profiles/8b-h100-measured.json")
    errors = [
        times.iteration_s(each["rows"], each["prompt_tokens"], each["rows"] * each["context"]) / each["ms"] * 1e3 - 1
        for each in json.loads(file.read_text())["whole_iterations"]
    ]
    assert len(errors) == 24
    assert max(map(abs, errors)) < 0.081
    assert abs(fmean(errors)) < 0.01


def test_the_times_of_an_h100_are_those_of_the_formula_that_agrees_with_the_card() -> None:
    times = profile_named("70b-tp4-h100-measured")
    assert ms(times, 16, 48, context=16 * 1024) == pytest.approx(15.754 + 5 + 0.035 * 16 + 2.7e-5 * 16384 + 0.012 * 48)


def test_the_unknown_name_is_answered_with_all_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown profile 'h100'; known: 8b-a100, .*8b-h100-measured"):
        profile_named("h100")


def test_a_step_costs_what_its_rows_read_and_its_chunks_attend_to() -> None:
    times = profile(attention={"context_token_ms": 0.001, "prompt_pair_ms": 0.0001})
    batcher = Batcher(BatcherSettings(max_batch_size=2, max_num_tokens=64, max_seq_len=1024))
    batcher.add(BatchedSequence(id="a", prompt_ids=tuple(range(40)), output_tokens_max=100), 0.0)
    first = batcher.plan(0.0)
    assert first is not None
    assert step_s(times, batcher, first) == pytest.approx(times.iteration_s(0, 40, 0, 40 * 20))
    batcher.finish(first, 1.0)
    batcher.add(BatchedSequence(id="b", prompt_ids=tuple(range(100, 200)), output_tokens_max=100), 1.0)
    for begin in (0, 32):  # chunks of whole blocks beside one row
        step = batcher.plan(1.0)
        assert step is not None
        pairs = 32 * (begin + 16)
        assert step_s(times, batcher, step) == pytest.approx(times.iteration_s(1, 32, 41 + (begin > 0), pairs))
        batcher.finish(step, 1.0)
