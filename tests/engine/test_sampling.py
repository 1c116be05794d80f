"""Sampling: small functions, checked by their numbers."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest

from engine.sampling import EngineSampling, draw, penalise

LOGITS = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))


def shares(sampling: EngineSampling, draws: int = 4000) -> list[float]:
    chosen = draw(np.repeat(LOGITS, draws, axis=0), [sampling] * draws, list(range(draws)))
    return [float((chosen == column).mean()) for column in range(4)]


def test_greedy_takes_the_largest() -> None:
    for greedy in (
        EngineSampling(),
        EngineSampling(top_k=1, temperature=2.0),
        EngineSampling(temperature=0.0, top_k=9),
    ):
        assert shares(greedy, 10) == [1, 0, 0, 0]


def test_draws_follow_the_distribution() -> None:
    assert shares(EngineSampling(top_p=1.0)) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_temperature_sharpens() -> None:
    assert shares(EngineSampling(top_p=1.0, temperature=0.5)) == pytest.approx([0.68, 0.25, 0.06, 0.01], abs=0.03)


def test_top_k_and_top_p_cut_the_tail() -> None:
    assert shares(EngineSampling(top_k=2)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(EngineSampling(top_p=0.7)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(EngineSampling(top_p=0.1)) == [1, 0, 0, 0]


def test_a_draw_depends_only_on_its_own_seed_and_number() -> None:
    logits = np.zeros((3, 300), np.float32)
    one = EngineSampling(top_p=1.0, seed=1)
    alone = draw(logits[:1], [one], [7])
    beside = draw(logits, [EngineSampling(top_p=1.0, seed=9), one, EngineSampling()], [7, 7, 7])
    assert alone[0] == beside[1] != beside[0]


def test_penalties_are_the_published_formulas() -> None:
    logits, counts = np.array([2.0, -2.0, 2.0], np.float32), np.array([3, 1, 0], np.int32)
    penalise(logits, counts, EngineSampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25))
    assert logits.tolist() == [2 / 2 - 0.5 - 0.75, -2 * 2 - 0.5 - 0.25, 2.0]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_p": 1.5}, {"top_k": -1}, {"repetition_penalty": 0.0}, {"presence_penalty": nan}],
)
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EngineSampling(**wrong)  # type: ignore[arg-type]
