"""Prompts and answers have the lengths that were measured: two percentiles, a cut, and nothing beyond it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import default_rng

from sidecar.sim import lengths
from sidecar.sim.lengths import EVICTION, TOY, Mix, TokenLengths


def test_the_drawn_lengths_have_the_percentiles_that_were_given() -> None:
    drawn = TokenLengths(p50=300, p99=1200, at_most=10**6).draw(default_rng(1), 40_000)
    assert np.percentile(drawn, 50) == pytest.approx(300, rel=0.03)
    assert np.percentile(drawn, 99) == pytest.approx(1200, rel=0.05)


def test_no_length_is_below_one_token_or_above_the_cut() -> None:
    drawn = TokenLengths(p50=1, p99=30, at_most=20).draw(default_rng(1), 5000)
    assert (min(drawn), max(drawn)) == (1, 20)


def test_lengths_of_one_size_are_all_of_that_size() -> None:
    assert set(EVICTION.online_output.draw(default_rng(1), 100)) == {256}
    assert set(EVICTION.offline_output.draw(default_rng(1), 100)) == {1500}


def test_the_longest_sequence_of_a_mix_fits_and_is_a_power_of_two() -> None:
    mixes = [each for each in vars(lengths).values() if isinstance(each, Mix)]
    assert len(mixes) >= 5
    for mix in mixes:
        longest = max(
            mix.online_prompt.at_most + mix.online_output.at_most,
            mix.offline_prompt.at_most + mix.offline_output.at_most,
        )
        assert longest <= mix.tokens_max < 2 * longest
        assert mix.tokens_max.bit_count() == 1
    assert TOY.tokens_max == 4096
