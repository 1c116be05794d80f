"""A request moves as its table says, and remembers by name which engines hold how much of it."""

from __future__ import annotations

import pytest

from sidecar.core.tracked_request import TRANSITIONS, RequestState, TrackedRequest
from tests.core.builders import offline


def tracked() -> TrackedRequest:
    return TrackedRequest(offline("b1"), 1, 0.0)


@pytest.mark.parametrize("state", RequestState)
def test_an_item_goes_where_the_table_leads_and_nowhere_else(state: RequestState) -> None:
    for target in RequestState:
        subject = tracked()
        subject.state = state
        if target in TRANSITIONS[state]:
            subject.move(target)
            assert subject.state is target
        else:
            with pytest.raises(AssertionError, match=f"b1: {state} → {target}"):
                subject.move(target)


def test_what_each_engine_holds_of_an_item_is_known_until_that_engine_forgets() -> None:
    subject = tracked()
    subject.ran_on("e0", 100)
    subject.ran_on("e1", 40)
    subject.ran_on("e0", 160)
    assert [subject.cached_tokens_on(name) for name in ("e0", "e1", "e2")] == [160, 40, 0]
    subject.lost_on("e0")
    assert (subject.cached_on, subject.cached_tokens) == ("", 0)
    assert [subject.cached_tokens_on(name) for name in ("e0", "e1")] == [0, 40]
    subject.lost_on("e1")
    assert subject.cached_tokens_on("e1") == 0


def test_kept_tokens_lengthen_the_context() -> None:
    subject = tracked()
    subject.streamed_tokens = 7
    before = subject.context_tokens
    subject.keep(5)
    assert (subject.context_tokens, subject.streamed_tokens) == (before + 5, 0)
