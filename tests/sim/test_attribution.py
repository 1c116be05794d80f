"""What the scheduler says that offline cost online, beside what it cost: the same arrivals without offline tell."""

from __future__ import annotations

import pytest

from sidecar.core.scheduler import Scheduler
from sidecar.inflight.profile import profile_named
from sidecar.sim import policies, workloads
from sidecar.sim.policies import ENGINE, EngineShape, Policy
from sidecar.sim.simulation_run import Result, RunPlan, run


@pytest.mark.slow
@pytest.mark.parametrize("slots", [8, 64])
def test_the_account_of_online_requests_is_what_the_same_ones_take_alone(slots: int) -> None:
    """No queue forms here, so from dispatch to end is from arrival to end."""
    workload, profile = workloads.by_name("constant-1.0"), profile_named("70b-tp4-a100")
    plan = RunPlan(workload=workload, profile=profile, slots=slots, hours=0.1, seed=5)
    made: list[Scheduler] = []

    def decider(shape: EngineShape) -> Scheduler:
        scheduler = policies.by_name("ours").decider(shape)
        assert isinstance(scheduler, Scheduler)
        made.append(scheduler)
        return scheduler

    beside, alone = run(plan, Policy(name="ours", baseline=decider)), run(plan, policies.by_name("online-only"))
    told = made[0].snapshot().engines[ENGINE].attribution
    assert told.attributed > 0.8 * len(beside.served), "the model has to be trusted for most of the run"
    assert told.alone_ms == pytest.approx(mean_ms(alone), rel=0.1)
    assert told.added_ms == pytest.approx(mean_ms(beside) - mean_ms(alone), abs=0.1 * mean_ms(alone))
    assert told.added_ms > 0


def mean_ms(result: Result) -> float:
    return 1000 * sum(each.e2e_s for each in result.served) / len(result.served)
