from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.latency import DecodingRows, LatencyModel
from sidecar.core.request import Lane
from sidecar.inflight.profile import ADDITIVE

TICK_S = 0.05


def drive(model: LatencyModel, gap_ms: object, *, samples: int = 600, from_s: float = 0.0, seed: int = 1) -> None:
    """Let `model` see so many ticks of a batch that keeps changing; `gap_ms(rows, context, random)` says the truth."""
    random, batch = Random(seed), DecodingRows()
    for tick in range(1, samples + 1):
        rows = random.randint(1, 64)
        batch.rows[Lane.OFFLINE] = rows
        batch.context[Lane.OFFLINE] = rows * random.randint(200, 2000)
        batch.changed_s = from_s + tick
        gap_s = gap_ms(rows, batch.context[Lane.OFFLINE], random) / 1000  # type: ignore[operator]
        model.observe(gap_s, batch, batch.changed_s + gap_s + TICK_S)


@pytest.mark.parametrize("profile", ADDITIVE, ids=lambda profile: profile.name)
def test_the_iteration_times_of_a_profile_are_found_under_noise(profile: object) -> None:
    model = LatencyModel()
    drive(model, lambda rows, _, random: profile.iteration_s(rows, 0) * 1000 * random.gauss(1, 0.02))  # type: ignore[attr-defined]
    figures = model.figures()
    assert figures.trusted, figures
    assert figures.mape is not None
    assert figures.mape < 0.03
    for rows in (0, 1, 32, 64):
        truth_s = profile.iteration_s(rows, 0)  # type: ignore[attr-defined]
        assert model.iteration_s(rows, rows * 1000) == pytest.approx(truth_s, rel=0.03)


@settings(max_examples=25, deadline=None)
@given(
    overhead=st.floats(5, 40),
    row=st.floats(0.05, 0.5),
    context=st.floats(0, 0.2),
    seed=st.integers(0, 1000),
)
def test_known_coefficients_are_recovered(overhead: float, row: float, context: float, seed: int) -> None:
    model = LatencyModel()
    drive(
        model,
        lambda rows, tokens, random: (overhead + row * rows + context * tokens / 1000) * random.gauss(1, 0.005),
        seed=seed,
    )
    figures = model.figures()
    assert figures.iteration_ms == pytest.approx(overhead, rel=0.05)
    truth_s = (overhead + row * 20 + context * 20) / 1000
    assert model.iteration_s(20, 20_000) == pytest.approx(truth_s, rel=0.03)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 100_000), st.floats(0.1, 500)), min_size=1, max_size=200))
def test_no_coefficient_is_ever_negative(samples: list[tuple[int, int, float]]) -> None:
    model, truth = LatencyModel(), iter(samples)
    batch = DecodingRows()
    for tick, (rows, context, gap_ms) in enumerate(truth, 1):
        batch.rows[Lane.OFFLINE], batch.context[Lane.OFFLINE] = rows, context
        model.observe(gap_ms / 1000, batch, tick * 10.0)
        figures = model.figures()
        least = min(figures.iteration_ms, figures.row_ms, figures.context_1000_ms, figures.prefill_token_ms)
        assert least >= 0, figures


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_garbage_is_never_trusted(seed: int) -> None:
    model = LatencyModel()
    drive(model, lambda _rows, _context, random: random.uniform(1, 100), seed=seed)
    figures = model.figures()
    assert not figures.trusted
    assert "good enough" in figures.why_not


def test_a_few_samples_are_not_enough_and_the_model_says_so() -> None:
    model = LatencyModel()
    drive(model, lambda rows, *_: 20 + rows, samples=60)
    assert model.figures().why_not == "40 of 80 samples"


def test_what_one_state_repeats_for_hours_does_not_make_it_forget_the_others() -> None:
    model, batch = LatencyModel(), DecodingRows()
    drive(model, lambda rows, context, _: 22 + 0.15 * rows + context / 100_000)
    batch.rows[Lane.OFFLINE], batch.context[Lane.OFFLINE] = 64, 64_000
    for tick in range(20_000):
        model.observe(0.03224, batch, 10_000.0 + tick)
    assert model.iteration_s(1, 1000) == pytest.approx(0.02216, rel=0.01)


def test_a_model_that_has_changed_is_learnt_anew() -> None:
    model = LatencyModel()
    drive(model, lambda rows, *_: 22 + 0.15 * rows)
    drive(model, lambda rows, *_: 11 + 0.3 * rows, samples=10_000, from_s=1000.0)
    assert model.iteration_s(10, 10_000) == pytest.approx(0.014, rel=0.05)


def test_an_iteration_in_which_the_batch_changed_teaches_nothing() -> None:
    model, batch = LatencyModel(), DecodingRows()
    batch.rows[Lane.OFFLINE], batch.changed_s = 8, 5.0
    model.observe(0.02, batch, 5.001)
    assert model.rows_seen == 0
    batch.prefilling["a"] = 5.5  # nor one that computes a prompt
    model.observe(0.02, batch, 6.0)
    assert model.rows_seen == 0
    batch.prefilling["a"] = 5.995  # one that came when the iteration was under way waits for the next
    model.observe(0.02, batch, 6.0)
    assert model.rows_seen == 8


def test_the_price_of_a_prompt_is_the_jump_it_makes() -> None:
    model, batch, random = LatencyModel(), DecodingRows(), Random(3)
    drive(model, lambda rows, *_: 22 + 0.15 * rows)
    batch.rows[Lane.OFFLINE], batch.context[Lane.OFFLINE] = 10, 10_000
    for tick in range(200):
        now_s, tokens = 10_000.0 + tick, random.randint(1, 500)
        gap_s = (23.5 + 0.16 * tokens) / 1000 * random.gauss(1, 0.01)
        batch.prefilling["a"] = now_s - gap_s - 0.01
        model.observe(gap_s, batch, now_s, computed="a", tokens=tokens)
    assert model.prefill_trusted
    assert model.prefill_s(400) == pytest.approx(0.064, rel=0.05)
    before = model.prefill_s(400)
    batch.prefilling["a"] = 20_000.0  # it took a second: chunks, of which this iteration had the last
    model.observe(0.08, batch, 20_001.0, computed="a", tokens=900)
    assert model.prefill_s(400) == before
