"""The OpenAI format is drawn with that API's defaults, the short form with the engine's; some is never resumed."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.offline.item_format import CompletionBody
from sidecar.offline.item_sampling import sampling_of
from sidecar.token_call import Sampling

SOURCE, OTHER = "inference.requests/3/17", "inference.requests/3/18"


def drawn(openai: bool, **asked: Any) -> tuple[Sampling, bool]:
    return sampling_of(CompletionBody(prompt="p", **asked), SOURCE, openai=openai)


def test_the_openai_format_samples_by_default_with_a_seed_of_the_items_own() -> None:
    sampling, resumable = drawn(True)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, resumable) == (1.0, 1.0, None, True)
    assert sampling.seed is not None
    assert 0 < sampling.seed < 2**48
    assert drawn(True)[0].seed == sampling.seed
    assert sampling_of(CompletionBody(prompt="p"), OTHER, openai=True)[0].seed != sampling.seed


def test_a_temperature_alone_samples_in_the_openai_format() -> None:
    sampling, resumable = drawn(True, temperature=0.5)
    assert (sampling.temperature, sampling.top_p, resumable) == (0.5, 1.0, True)


def test_the_short_form_leaves_the_engine_its_defaults() -> None:
    assert drawn(False) == (Sampling(), True)
    assert drawn(False, temperature=0.5) == (Sampling(temperature=0.5), True)
    assert drawn(False, temperature=0.5, top_k=0, top_p=0.0) == (Sampling(temperature=0.5, top_k=0, top_p=0.0), True)
    assert drawn(False, top_k=5, top_p=0.0) == (Sampling(top_k=5, top_p=0.0, seed=0), True)


@pytest.mark.parametrize("openai", [True, False])
@pytest.mark.parametrize(
    "asked",
    [{"temperature": 0.0}, {"temperature": -0.0, "top_p": 0.9, "top_k": 40}, {"temperature": 1e-300}, {"top_k": 1}],
)
def test_temperature_zero_is_greedy_whatever_else_is_stated(openai: bool, asked: dict[str, Any]) -> None:
    assert drawn(openai, **asked) == (Sampling(top_k=1), True)


def test_the_smallest_share_of_the_openai_format_is_greedy_and_to_the_engine_it_is_no_limit() -> None:
    assert (
        drawn(True, top_p=0.0) == drawn(True, top_p=1e-300) == drawn(False, top_p=1e-300) == (Sampling(top_k=1), True)
    )


@pytest.mark.parametrize("openai", [True, False])
@pytest.mark.parametrize(
    ("asked", "resumable"),
    [
        ({"seed": 5, "temperature": 0.0}, True),
        ({"seed": 5, "top_p": 0.9}, False),
        ({"seed": 0, "top_k": 4}, False),
        ({"presence_penalty": 0.5}, False),
        ({"frequency_penalty": -0.5}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"min_tokens": 1}, False),
        ({"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_tokens": 0}, True),
    ],
)
def test_what_a_resume_would_change_runs_whole(openai: bool, asked: dict[str, Any], resumable: bool) -> None:
    assert drawn(openai, **asked)[1] is resumable


def test_a_stated_seed_goes_to_the_engine() -> None:
    assert drawn(True, seed=(1 << 64) - 1)[0].seed == (1 << 64) - 1
    assert drawn(False, seed=7, top_p=0.5) == (Sampling(seed=7, top_p=0.5), False)
