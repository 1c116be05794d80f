"""Tokens are told once: first tokens at the next tick, counts as often as asked, and never those of what is gone."""

from __future__ import annotations

from math import inf

import pytest

from sidecar.core.events import Dispatch, Progressed
from sidecar.core.request import DispatchKind, Lane, Request
from sidecar.inflight.batch import BatcherSettings
from sidecar.inflight.profile import Profile
from sidecar.sim.machine import FirstToken, Machine, SimulatedDispatch
from sidecar.sim.progress import RequestProgress, RunningDispatch
from sidecar.sim.ticks import MachineTicks
from sidecar.sim.workloads import SimulatedRequest

PROFILE = Profile(name="round", overhead_ms=10.0, decode_row_ms=0.0, prefill_token_ms=0.0)


class Stage:
    """One machine on which `a` generates a hundred tokens, one each 10 ms, and what was told of it."""

    def __init__(self, progress_s: float) -> None:
        self.told: list[Progressed] = []
        request = Request(
            id="a", lane=Lane.ONLINE, model="tensorrt_llm", arrived_s=0.0, prompt_tokens=5, output_tokens_max=100
        )
        action = Dispatch(
            request_id="a", engine="e0", kind=DispatchKind.ONLINE, output_tokens=100, slots=1, queue_wait_s=0.0
        )
        job = SimulatedRequest(request=request, output_tokens=100)
        self.machine = Machine(BatcherSettings(max_batch_size=2, max_num_tokens=512, max_seq_len=4096), PROFILE)
        self.alive = {"a": RequestProgress(job, running=RunningDispatch(action))}
        self.ticks = MachineTicks(
            {"e0": self.machine}, self.alive, self.told.append, tick_s=0.01, progress_s=progress_s
        )
        call = SimulatedDispatch(
            request_id="a", lane=Lane.ONLINE, context_tokens=5, output_tokens=100, output_tokens_max=100, slots=1
        )
        self.machine.submit(call, 0.0)
        self.ticks.arm(0.0)

    def run(self, until_s: float) -> None:
        """Advance the machine and do every tick up to then."""
        while (now_s := min(self.machine.next_s(), self.ticks.at_s)) <= until_s:
            if now_s == self.machine.next_s():
                for outcome in self.machine.advance(now_s):
                    if isinstance(outcome, FirstToken):
                        self.ticks.first_token("e0", outcome.request_id)
                        self.ticks.arm(now_s)
            else:
                self.ticks.tick(now_s)

    @property
    def tokens(self) -> int:
        """The tokens that were told in all."""
        return sum(count for each in self.told for _, count in each.tokens)


def test_every_token_is_told_once_however_seldom_counts_are_told() -> None:
    often, seldom = Stage(progress_s=0.0), Stage(progress_s=0.25)
    for stage in (often, seldom):
        stage.run(0.5)
    assert often.tokens == pytest.approx(50, abs=1)
    assert seldom.tokens == pytest.approx(50, abs=26)
    assert len(seldom.told) < len(often.told)
    assert [each.first_tokens for each in often.told if each.first_tokens] == [("a",)]


def test_a_first_token_does_not_wait_for_the_next_count() -> None:
    stage = Stage(progress_s=10.0)
    stage.ticks.tick(0.0)  # the first count is over
    stage.told.clear()
    stage.run(0.1)
    assert stage.told[0].first_tokens == ("a",)
    assert 0 < stage.tokens < 10, "counts wait for their time"


def test_the_first_token_of_a_dispatch_that_broke_is_not_told() -> None:
    stage = Stage(progress_s=10.0)
    stage.ticks.first_token("e0", "a")
    stage.ticks.forget("e0", "a")
    stage.ticks.before_end("e0", "a", 0.02)
    assert stage.told == []


def test_an_end_is_preceded_by_the_first_token_that_waits() -> None:
    stage = Stage(progress_s=10.0)
    stage.machine.advance(0.02)
    stage.ticks.first_token("e0", "a")
    stage.ticks.before_end("e0", "a", 0.02)
    assert [each.first_tokens for each in stage.told] == [("a",)]


def test_what_has_ended_is_told_by_its_end_alone() -> None:
    stage = Stage(progress_s=0.0)
    stage.alive.clear()
    stage.run(0.2)
    assert stage.tokens == 0


def test_an_idle_engine_has_no_next_tick() -> None:
    stage = Stage(progress_s=0.0)
    stage.machine.drop("a", 0.001)
    stage.ticks.at_s = inf
    stage.ticks.arm(0.001)
    assert stage.ticks.at_s == inf
