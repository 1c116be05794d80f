"""Callers who do not behave: each kind says what it is and what it got."""

from __future__ import annotations

import pytest

from dev.front_abuse import KINDS, main
from tests.fakes.sidecar import Sidecar


def test_each_kind_of_abuse_says_what_it_is() -> None:
    assert all((do.__doc__ or "").endswith(".") for do in KINDS.values())


@pytest.mark.parametrize(("kind", "status"), [("connects", "connected"), ("long_prompts", "INVALID_ARGUMENT")])
async def test_what_they_got_is_counted(sidecar: Sidecar, kind: str, status: str) -> None:
    found = await main(kind, sidecar.address, 0.3, 1)
    assert found[status] > 0
