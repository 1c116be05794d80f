"""What the simulated driver knows of a request: what is left of it, and how it ended, in one word."""

from __future__ import annotations

import pytest

from sidecar.core.events import DeadLetter, Ending, Reject, RejectReason
from sidecar.core.request import Lane, Request
from sidecar.sim.progress import RequestProgress, outcome_word
from sidecar.sim.workloads import SimulatedRequest


def test_the_tokens_that_are_left_shrink_by_those_that_were_kept() -> None:
    request = Request(id="a", lane=Lane.OFFLINE, model="m", arrived_s=0.0, prompt_tokens=5, output_tokens_max=64)
    progress = RequestProgress(SimulatedRequest(request=request, output_tokens=40))
    assert (progress.request, progress.tokens_left, progress.outcome) == (request, 40, "")
    progress.kept_tokens = 16
    assert progress.tokens_left == 24


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (Ending.COMPLETE, "ended"),
        (Ending.CANCELLED, "cancelled"),
        (Ending.INCOMPLETE, "incomplete"),
        (Reject(reason=RejectReason.QUEUE_FULL, message="full"), "rejected"),
        (DeadLetter(reason="x", attempts=2), "dead"),
    ],
)
def test_each_outcome_has_its_word(outcome: Ending | Reject | DeadLetter, word: str) -> None:
    assert outcome_word(outcome) == word
