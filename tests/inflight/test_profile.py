"""What an iteration costs: the named profiles, and the sum of its parts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.inflight.profile import PROFILES, Profile, profile_named


def test_the_named_profiles_are_the_stated_costs() -> None:
    assert profile_named("8b-a100").iteration_s(8, 100) == pytest.approx(0.0174)
    assert profile_named("70b-tp4-a100").iteration_s(64, 0) == pytest.approx(0.0316)
    with pytest.raises(ValueError, match=r"unknown profile 'h100'; known: 8b-a100, 70b-tp4-a100"):
        profile_named("h100")
    with pytest.raises(ValueError, match="costs >= 0"):
        Profile(name="x", overhead_ms=-1.0, decode_row_ms=0.0, prefill_token_ms=0.0)


COSTS = st.floats(0, 1000)


@given(overhead_ms=COSTS, row_ms=COSTS, token_ms=COSTS, rows=st.integers(0, 100), tokens=st.integers(0, 10_000))
def test_an_iteration_costs_its_parts_and_never_less_with_more_work(
    overhead_ms: float, row_ms: float, token_ms: float, rows: int, tokens: int
) -> None:
    profile = Profile(name="x", overhead_ms=overhead_ms, decode_row_ms=row_ms, prefill_token_ms=token_ms)
    took_s = profile.iteration_s(rows, tokens)
    assert took_s == pytest.approx((overhead_ms + row_ms * rows + token_ms * tokens) / 1000)
    assert took_s <= profile.iteration_s(rows + 1, tokens)
    assert took_s <= profile.iteration_s(rows, tokens + 1)


@pytest.mark.parametrize(
    "wrong", [{"decode_row_ms": -0.1}, {"prefill_token_ms": -1.0}, {"kv_tokens_max": 0}, {"overhead_ms": -9.0}]
)
def test_a_profile_that_no_engine_can_have_is_refused_with_its_values(wrong: dict[str, Any]) -> None:
    costs: dict[str, Any] = {"overhead_ms": 1.0, "decode_row_ms": 1.0, "prefill_token_ms": 1.0}
    with pytest.raises(ValueError, match=r"a profile needs costs >= 0 and kv_tokens_max >= 1: .*name='x'"):
        Profile(name="x", **(costs | wrong))


def test_every_named_profile_is_known_by_its_own_name() -> None:
    assert [profile_named(name).name for name in PROFILES] == [*PROFILES]
