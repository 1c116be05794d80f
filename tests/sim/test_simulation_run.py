"""Whole runs: repeatable, honest about prices, and in line with what is known of each policy."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import pytest

from sidecar.core.errors import SettingsError
from sidecar.core.settings import EngineSettings, ReservationMode, SchedulerSettings
from sidecar.inflight.profile import profile_named
from sidecar.sim import policies, workloads
from sidecar.sim.policies import OFFLINE_ALONE, POLICIES
from sidecar.sim.simulation_run import Result, RunPlan, run

ORIGIN, PROFILE = workloads.by_name("origin"), profile_named("70b-tp4-a100")
SHORT = {"offline_queue_max": 32, "offline_queue_low": 16}  # the checks cost in proportion to what waits
PLAN = RunPlan(workload=ORIGIN, profile=PROFILE, slots=8, hours=0.05, seed=1, overrides=SHORT)
CHECKED = replace(PLAN, check_every=1)


def test_every_change_that_a_policy_makes_is_a_setting_that_exists() -> None:
    known = {each.name for settings in (SchedulerSettings, EngineSettings) for each in fields(settings)}
    assert {name for policy in POLICIES.values() for name in policy.changes} <= known


def test_a_setting_given_as_text_has_the_kind_of_its_default() -> None:
    given = ["yield_rows=3", "itl_added=0.5", "window_ms=7", "preempt=false", "reservation_mode=yielding"]
    assert policies.parse_overrides(given) == {
        "yield_rows": 3,
        "itl_added": 0.5,
        "window_ms": 7,
        "preempt": False,
        "reservation_mode": ReservationMode.YIELDING,
    }


def p99_s(result: Result) -> float:
    values = sorted(each.e2e_s for each in result.served)
    return values[int(len(values) * 0.99)]


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    policy = policies.by_name("ours")
    assert run(PLAN, policy).sha256 == run(PLAN, policy).sha256
    assert run(replace(PLAN, seed=2), policy).sha256 != run(PLAN, policy).sha256


def test_watching_the_invariants_changes_nothing() -> None:
    policy = policies.by_name("ours")
    assert run(PLAN, policy).sha256 == run(CHECKED, policy).sha256


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_answers_every_online_request(name: str) -> None:
    result = run(CHECKED, policies.by_name(name))
    assert result.refused == 0
    assert len(result.served) == len(PLAN.workload.online(1, PLAN.hours))


@pytest.mark.slow
@pytest.mark.parametrize("slots", [8, 64])
def test_ours_keeps_the_promise_to_offline_and_its_own_accounts(slots: int) -> None:
    result = run(replace(PLAN, slots=slots, hours=0.3), policies.by_name("ours"))
    assert len(result.promise.offline) >= 200
    assert (result.promise.violations(), result.promise.starvation_gap_dispatches()) == (0, 9)


def test_faults_cost_requests_and_no_promise() -> None:
    storm = replace(CHECKED, seed=7, faults=True)  # its weather has cancels and lost streams
    result = run(storm, policies.by_name("ours"))
    assert result.refused > 0
    assert result.sha256 == run(storm, policies.by_name("ours")).sha256


def test_ours_beats_the_plain_rule_and_static_batches_at_the_tail() -> None:
    tails = [p99_s(run(PLAN, policies.by_name(name))) for name in ("online-only", "ours", "plain-nth", "static-batch")]
    assert tails == sorted(tails)


def test_no_policy_that_pays_its_prices_harvests_more_than_offline_alone() -> None:
    ceiling = run(PLAN, OFFLINE_ALONE).offline_tokens_per_s
    for name in ("ours", "naive", "plain-nth", "bands"):
        assert 0 < run(PLAN, policies.by_name(name)).offline_tokens_per_s < ceiling


def test_resuming_wastes_less_than_restarting() -> None:
    resumed, restarted = (run(PLAN, policies.by_name(name)) for name in ("ours", "bands"))
    assert resumed.preemptions > restarted.preemptions > 0
    assert resumed.wasted_ratio < restarted.wasted_ratio


@pytest.mark.parametrize("name", ["static-cap-5", "aimd-ttft-450", "ours@window_ms=3+preempt=false", "ideal"])
def test_a_policy_with_a_number_or_settings_in_its_name_survives_the_way_between_processes(name: str) -> None:
    policy = policies.by_name(name)
    again = pickle.loads(pickle.dumps(policy))
    assert (again.name, again.changes, again.prices) == (name, policy.changes, policy.prices)


def test_what_a_name_sets_is_set() -> None:
    scheduler, _ = policies.by_name("ours@window_ms=3+preempt=false").settings(PLAN.shape)
    assert (scheduler.window_ms, scheduler.preempt) == (3, False)
    with pytest.raises(SettingsError, match="unknown setting 'windows'"):
        policies.by_name("ours@windows=3")
    with pytest.raises(SettingsError, match="unknown policy"):
        policies.by_name("naive@window_ms=3")
