from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import inf
from random import Random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.iteration_model import BIN_TOKENS, ERROR_MAX, REACH, SAMPLES_MIN, IterationModel

Truth = Callable[[float, float], float]  # milliseconds of an iteration, of its tokens and its context
TOKENS_SEEN = 128


def additive(tokens: float, context: float) -> float:
    return 22 + 0.15 * tokens + context / 10_000


def stepped(tokens: float, context: float) -> float:
    """Flat up to 32 tokens, and then 6 ms more for each further 32."""
    return 20 + 6 * ((tokens - 1) // 32) + context / 10_000


def drive(
    model: IterationModel,
    truth: Truth,
    *,
    samples: int = 1500,
    noise: float = 0.02,
    from_s: float = 0.0,
    most: int = TOKENS_SEEN,
    seed: int = 1,
) -> list[bool]:
    """Let `model` see so many iterations of a batch that keeps changing. Return whether it was trusted after each."""
    random, trusted = Random(seed), []
    for sample in range(samples):
        tokens = random.randint(1, most)
        context = tokens * random.randint(100, 500)
        gap_ms = max(0.1, truth(tokens, context) * random.gauss(1, noise))
        model.observe(gap_ms / 1000, tokens, context, from_s + sample)
        trusted.append(model.trusted)
    return trusted


def median_error(model: IterationModel, truth: Truth) -> float:
    """The median over all numbers of tokens seen of how far the model is off, relatively."""
    errors = []
    for tokens in range(1, TOKENS_SEEN + 1):
        truth_ms = truth(tokens, tokens * 300)
        errors.append(abs(1000 * model.iteration_s(tokens, tokens * 300) / truth_ms - 1))
    return median(errors)


@pytest.mark.parametrize(("noise", "error_max"), [(0.02, 0.01), (0.20, 0.05)])
@pytest.mark.parametrize("truth", [additive, stepped])
def test_the_curve_is_found_under_noise(truth: Truth, noise: float, error_max: float) -> None:
    model = IterationModel()
    drive(model, truth, noise=noise)
    figures = model.figures()
    assert figures.trusted, figures
    assert figures.error is not None
    assert figures.error < ERROR_MAX
    assert median_error(model, truth) < error_max


def test_the_cost_of_context_is_found() -> None:
    model = IterationModel()
    drive(model, additive)
    assert model.figures().context_1000_ms == pytest.approx(0.1, rel=0.1)
    assert model.iteration_s(20, 60_000) - model.iteration_s(20, 10_000) == pytest.approx(0.005, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 100_000), st.floats(0.001, 500)), min_size=1, max_size=60)
)
def test_whatever_was_seen_more_tokens_or_context_never_take_less_time(samples: list[tuple[int, int, float]]) -> None:
    model = IterationModel()
    for at_s, (tokens, context, gap_ms) in enumerate(samples):
        model.observe(gap_ms / 1000, tokens, context, float(at_s))
    by_tokens = [model.iteration_s(tokens, 1000) for tokens in range(1, model.tokens_max + 1, 5)]
    assert by_tokens[0] >= 0
    # The curve is computed by interpolation, so equal values may differ in their last bits.
    assert all(after_s >= before_s * (1 - 1e-9) for before_s, after_s in pairwise(by_tokens))
    assert model.iteration_s(10, 0) <= model.iteration_s(10, 1000) <= model.iteration_s(10, 5000)


@pytest.mark.parametrize("truth", [additive, stepped])
def test_tokens_within_a_time_are_the_inverse_of_the_time_of_tokens(truth: Truth) -> None:
    model = IterationModel()
    drive(model, truth)
    for milliseconds in range(20, 60):
        tokens = model.tokens_within(milliseconds / 1000, 5000)
        assert tokens == 0 or model.iteration_s(tokens, 5000) <= milliseconds / 1000
        assert tokens == model.tokens_max or model.iteration_s(tokens + 1, 5000) > milliseconds / 1000
    assert all(model.tokens_within(model.iteration_s(each), 0) >= each for each in range(1, model.tokens_max))


def test_nothing_is_promised_far_beyond_the_most_tokens_seen() -> None:
    model = IterationModel()
    drive(model, additive, most=40)
    assert model.tokens_max == model.tokens_within(inf, 0) == int(REACH * 40)
    drive(model, additive, most=80, from_s=10_000)
    assert model.tokens_max == model.tokens_within(inf, 0) == int(REACH * 80)


def test_the_curve_is_a_line_between_two_bins_seen_and_goes_on_below_the_first() -> None:
    model = IterationModel()
    for at_s in range(100):
        model.observe(0.020, 3 * BIN_TOKENS, 0, at_s)
        model.observe(0.040, 13 * BIN_TOKENS, 0, at_s + 0.5)
    assert model.iteration_s(1) == pytest.approx(0.01525)  # were it flat, rows would seem free
    assert model.iteration_s(2.5 * BIN_TOKENS) == pytest.approx(0.020)
    assert model.iteration_s(7.5 * BIN_TOKENS) == pytest.approx(0.030)
    assert model.iteration_s(12.5 * BIN_TOKENS) == pytest.approx(0.040)


def test_without_a_sample_nothing_is_known() -> None:
    model = IterationModel()
    assert (model.iteration_s(1), model.tokens_max, model.tokens_within(0.0, 0) > 0) == (0.0, 0, False)
    assert (model.figures().error, model.figures().trusted) == (None, False)


def test_a_few_samples_are_not_enough_for_trust() -> None:
    trusted = drive(IterationModel(), lambda *_: 20, samples=4 * SAMPLES_MIN, noise=0.0)
    assert not any(trusted[: SAMPLES_MIN - 1])
    assert trusted[2 * SAMPLES_MIN]


def test_an_iteration_of_more_tokens_than_the_bins_reach_counts_with_the_last() -> None:
    model = IterationModel()
    model.observe(0.5, 100_000, 0, 0.0)
    assert model.iteration_s(1) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_garbage_is_never_trusted(seed: int) -> None:
    model, random = IterationModel(), Random(seed)
    assert not any(drive(model, lambda *_: random.choice([1, 100]), seed=seed))


def test_trust_is_lost_when_the_engine_changes_and_won_back() -> None:
    model = IterationModel()
    assert drive(model, additive)[-1]
    since_s = model.trusted_since_s
    after = drive(model, lambda tokens, context: additive(tokens, context) / 2, samples=6000, from_s=10_000)
    assert not all(after)
    assert after[-1]
    assert after.index(False) < 400  # a minute near the knee
    assert since_s is not None
    assert model.trusted_since_s is not None
    assert model.trusted_since_s > 10_000 > since_s
    assert median_error(model, lambda tokens, context: additive(tokens, context) / 2) < 0.03


def test_single_hiccups_do_not_turn_a_trusted_model_over() -> None:
    model, random = IterationModel(), Random(7)
    drive(model, additive)
    trusted = drive(model, lambda *each: additive(*each) * (20 if random.random() < 0.01 else 1), from_s=10_000)
    assert all(trusted)
    assert median_error(model, additive) < 0.03


def test_what_one_state_repeats_for_hours_does_not_make_the_model_forget_the_others() -> None:
    model = IterationModel()
    drive(model, additive)
    for tick in range(5000):
        model.observe(additive(64, 20_000) / 1000, 64, 20_000, 10_000.0 + tick)
    assert median_error(model, additive) < 0.03
