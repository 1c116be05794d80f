"""Figures as a reader of a board expects them."""

from __future__ import annotations

import math

import pytest

from dev.observe.units import ticks, written


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0125, "s", "12.5 ms"),
        (0.0, "s", "0 s"),
        (90.0, "s", "1.5 min"),
        (0.953, "percentunit", "95.3 %"),
        (3 * 2**30, "bytes", "3 GiB"),
        (1.5, "currencyUSD", "$1.50"),
        (1500.0, "short", "1.5k"),
        (12.34, "tokens/s", "12.3 tok/s"),
        (7.0, "none", "7"),
        (1.0, "bool_yes_no", "yes"),
        (1_700_000_000_000.0, "dateTimeAsIso", "Nov 14, 22:13"),
        (math.nan, "s", "no data"),
        (312.0, "watt", "312 W"),
    ],
)
def test_a_value_has_its_unit(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


@pytest.mark.parametrize("most", [0.003, 0.9, 1.0, 7.0, 95.0, 1234.0])
def test_ticks_are_few_and_round_and_reach_the_top(most: float) -> None:
    found = ticks(most)
    assert found[0] == 0
    assert most <= found[-1] <= 2 * most
    assert 3 <= len(found) <= 6


def test_ticks_are_round_in_their_unit() -> None:
    assert ticks(200.0, "s") == [0.0, 60.0, 120.0, 180.0, 240.0]
    assert ticks(2**20, "bytes")[1] == 2**18


def test_an_axis_of_nothing_goes_to_one() -> None:
    assert ticks(0.0) == ticks(math.inf) == [0.0, 1.0]
