"""Slices widen and end where the engine forgets, and come back where it remembers."""

from __future__ import annotations

import pytest

from sidecar.core.events import Arrived, Ended, Stopped
from sidecar.core.request import EndReason
from sidecar.core.settings import EngineSettings
from sidecar.core.slices import SAMPLES, Slices
from sidecar.core.tracked_request import TrackedRequest
from tests.core.builders import offline, scheduler


def _budget(slices: Slices, *, left: int = 10_000, resumable: bool = True) -> int:
    tracked = TrackedRequest(offline("b", output_tokens_max=left, resumable=resumable), 1, 0.0)
    return slices.output_tokens(tracked, online_resident=False)


def _verdicts(slices: Slices, reused_of_100: int, count: int) -> None:
    for _ in range(count * SAMPLES):
        slices.observe(100, reused_of_100)


def test_slices_widen_step_by_step_and_then_end_where_the_engine_forgets() -> None:
    slices = Slices(64, 32)
    budgets = []
    for _ in range(5):
        budgets.append(_budget(slices))
        _verdicts(slices, 50, 1)
    assert budgets == [64, 128, 256, 512, 10_000]
    assert slices.hit == pytest.approx(0.5, abs=0.01)


def test_the_scheduler_tells_whether_slices_are_cut_and_how_much_is_reused() -> None:
    assert scheduler().reuse_of("e") == (1, 1.0)


def test_slices_come_back_where_the_engine_remembers_again() -> None:
    slices = Slices(64, 32)
    _verdicts(slices, 0, 4)
    assert slices.factor == 0
    _verdicts(slices, 100, 4)
    assert _budget(slices) == 64


def test_a_verdict_between_the_two_marks_changes_nothing() -> None:
    slices = Slices(64, 32)
    _verdicts(slices, 92, 3)
    assert slices.factor == 1


@pytest.mark.parametrize(("left", "resumable", "budget"), [(20, True, 20), (5000, False, 5000)])
def test_a_slice_never_exceeds_what_is_left_and_never_cuts_what_cannot_resume(
    left: int, resumable: bool, budget: int
) -> None:
    assert _budget(Slices(64, 32), left=left, resumable=resumable) == budget


@pytest.mark.parametrize(("reused_tokens", "ratio"), [(128, 1.0), (64, 0.975)])
def test_what_fills_no_whole_block_is_not_missed_in_the_cache(reused_tokens: int, ratio: float) -> None:
    """With blocks of 64 tokens a context of 189 is found again up to its token 128."""
    engine = EngineSettings(name="e", kv_block_tokens=64, yield_rows="never", prefill_slice_tokens=256)
    subject = scheduler(engines=(engine,), slice_tokens=8)
    subject.handle(Arrived(request=offline("b", prompt_tokens=182)), 0.0)
    subject.handle(Ended(request_id="b", reason=EndReason.LENGTH, output_tokens=8, reused_tokens=0), 0.1)
    subject.handle(Ended(request_id="b", reason=EndReason.LENGTH, output_tokens=8, reused_tokens=reused_tokens), 0.2)
    assert subject.snapshot().engines["e"].reuse_ratio == pytest.approx(ratio, abs=0.001)


@pytest.mark.parametrize(("output_tokens", "ratio"), [(0, 1.0), (3, 0.95)])
def test_a_resume_that_was_stopped_without_a_token_says_nothing_of_the_cache(output_tokens: int, ratio: float) -> None:
    """It may have been in the engine's queue: then it reports that nothing was reused."""
    subject = scheduler(slice_tokens=8)
    subject.handle(Arrived(request=offline("b", prompt_tokens=40)), 0.0)
    subject.handle(Ended(request_id="b", reason=EndReason.LENGTH, output_tokens=8, reused_tokens=0), 0.1)
    subject.handle(Stopped(request_id="b", output_tokens=output_tokens, reused_tokens=0), 0.2)
    assert subject.snapshot().engines["e"].reuse_ratio == pytest.approx(ratio, abs=0.001)
