"""Least squares over a stream of samples."""

from __future__ import annotations

from random import Random

import pytest

from sidecar.sim.least_squares import Fit


def test_the_coefficients_of_a_line_are_found() -> None:
    fit, random = Fit(2), Random(1)
    for _ in range(200):
        x = random.uniform(0, 2)
        fit.learn((1.0, x), 3.0 + 0.5 * x)
    assert fit.theta == pytest.approx([3.0, 0.5], rel=0.01)
    assert fit.predict((1.0, 4.0)) == pytest.approx(5.0, rel=0.01)


def test_no_coefficient_is_negative() -> None:
    fit, random = Fit(2), Random(1)
    for _ in range(200):
        x = random.uniform(0, 2)
        fit.learn((1.0, x), 3.0 - 0.5 * x)
    assert fit.theta[1] == 0.0
    assert 2.0 < fit.theta[0] < 3.0  # the mean that is left


def test_the_past_fades_and_what_is_not_seen_any_more_stays() -> None:
    fit = Fit(2, forgetting=0.9)
    for _ in range(50):
        fit.learn((1.0, 0.0), 3.0)
        fit.learn((0.0, 1.0), 7.0)
    for _ in range(200):
        fit.learn((1.0, 0.0), 5.0)
    assert fit.theta == pytest.approx([5.0, 7.0], rel=0.01)


def test_without_a_sample_everything_costs_nothing() -> None:
    assert Fit(2).predict((1.0, 1.0)) == 0.0
