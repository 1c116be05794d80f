"""What offline costs an online request is told from what the request takes by itself."""

from __future__ import annotations

import pytest

from sidecar.core.attribution import Attribution
from sidecar.core.request import Request
from sidecar.core.settings import SchedulerSettings
from sidecar.core.tracked_request import TrackedRequest
from tests.core.builders import offline, online

ITERATION_MS, TOKEN_MS = 20.0, 0.1


def attribution() -> Attribution:
    """One that has learnt 20 ms an iteration and 0.1 ms a token."""
    made = Attribution(SchedulerSettings())
    for number in range(4000):
        tokens = 1 + number * 37 % 512
        made.model.observe((ITERATION_MS + TOKEN_MS * tokens) / 1000, tokens, 0.0, number * 0.01)
    return made


def running(made: Attribution, request: Request, now_s: float, *, first_s: float | None = None) -> TrackedRequest:
    """`request`, dispatched now; with `first_s` it has its first token then."""
    tracked = TrackedRequest(request, 1, now_s)
    tracked.prefill_tokens = request.prompt_tokens
    made.began(tracked, now_s, 0.0)
    if first_s is not None:
        made.streamed((), [tracked], first_s)
    return tracked


def test_what_a_request_takes_without_offline_is_all_its_own() -> None:
    made = attribution()
    tracked = running(made, online("a", arrived_s=1.0), 1.0, first_s=1.1)
    assert made.alone_s(tracked, 2.0) == pytest.approx(1.0)


def test_rows_that_decode_beside_it_cost_it_their_share_of_each_iteration() -> None:
    made = attribution()
    tracked = running(made, online("a", arrived_s=1.0), 1.0, first_s=1.1)
    for number in range(50):
        running(made, offline(f"b{number}"), 1.1, first_s=1.1)
    tracked_alone_s = made.alone_s(tracked, 2.1)
    alone_ms, both_ms = ITERATION_MS + TOKEN_MS, ITERATION_MS + 51 * TOKEN_MS
    assert tracked_alone_s == pytest.approx(0.1 + alone_ms / both_ms, abs=0.02)
    made.complete(tracked, 2.1)
    assert made.figures().itl_share == pytest.approx(both_ms / alone_ms - 1, abs=0.03)


def test_an_arrival_waits_for_half_of_an_iteration_of_offline() -> None:
    made = attribution()
    for number in range(50):
        running(made, offline(f"b{number}"), 1.0, first_s=1.0)
    tracked = running(made, online("a", arrived_s=1.0), 1.0)
    alone_s = made.alone_s(tracked, 1.1)
    assert alone_s is not None
    assert 0.1 - alone_s > (ITERATION_MS + 50 * TOKEN_MS) / 2 / 1000


def test_who_comes_behind_an_online_prompt_waits_for_its_delay_too() -> None:
    made = attribution()
    for number in range(50):
        running(made, offline(f"b{number}"), 1.0, first_s=1.0)
    first = running(made, online("a", arrived_s=1.0), 1.0)
    second = running(made, online("c", arrived_s=1.03), 1.03)
    first_alone_s, second_alone_s = made.alone_s(first, 1.1), made.alone_s(second, 1.1)
    assert first_alone_s is not None
    assert second_alone_s is not None
    assert 0.1 - first_alone_s == pytest.approx(0.07 - second_alone_s)


def test_without_a_trusted_model_nothing_is_known() -> None:
    made = Attribution(SchedulerSettings())
    tracked = running(made, online("a", arrived_s=1.0), 1.0, first_s=1.1)
    assert made.alone_s(tracked, 2.0) is None
    made.complete(tracked, 2.0)
    assert made.figures().attributed == 0


def test_an_iteration_in_which_the_batch_changed_or_another_prompt_was_computed_teaches_nothing() -> None:
    made = attribution()
    running(made, offline("b"), 1.0, first_s=1.0)
    seen = made.model.samples
    made.streamed((0.02,), [], 1.001)  # a row came in it
    assert made.model.samples == seen
    running(made, offline("c"), 2.0)
    made.streamed((0.02,), [], 2.5)  # a prompt may have been in it
    assert made.model.samples == seen
    made.streamed((0.02,), [], 2.01)  # it came when the iteration was under way, and waits for the next
    assert made.model.samples == seen + 1


@pytest.mark.parametrize(("objective_ms", "late"), [(0.0, 0), (80.0, 1)])
def test_a_first_token_is_late_by_the_objective_that_the_request_states(objective_ms: float, late: int) -> None:
    made = attribution()
    tracked = running(made, online("a", arrived_s=1.0, ttft_objective_ms=objective_ms), 1.0, first_s=1.1)
    made.complete(tracked, 1.2)
    assert made.figures().online_late == late
