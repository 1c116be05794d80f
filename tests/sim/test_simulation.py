"""Whole runs: repeatable, honest about prices, and in line with what is known of each policy."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import fields, replace
from pathlib import Path

import pytest

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.core.errors import SettingsError
from sidecar.core.settings import EngineSettings, ReservationMode, SchedulerSettings
from sidecar.inflight.profile import profile_named
from sidecar.sim import comparison, policies, workloads
from sidecar.sim.arrivals_file import read_csv
from sidecar.sim.policies import OFFLINE_ALONE, POLICIES, Policy
from sidecar.sim.simulation_run import Result, RunPlan, run

ORIGIN, PROFILE = workloads.by_name("origin"), profile_named("70b-tp4-a100")
SHORT = {"offline_queue_max": 32, "offline_queue_low": 16}  # the checks cost in proportion to what waits
PLAN = RunPlan(workload=ORIGIN, profile=PROFILE, slots=8, hours=0.05, seed=1, overrides=SHORT)
CHECKED = replace(PLAN, check_every=1)


def test_every_change_that_a_policy_makes_is_a_setting_that_exists() -> None:
    known = {each.name for settings in (SchedulerSettings, EngineSettings) for each in fields(settings)}
    assert {name for policy in POLICIES.values() for name in policy.changes} <= known


def test_a_setting_given_as_text_has_the_kind_of_its_default() -> None:
    given = ["yield_rows=3", "yield_hold_ms=50.5", "window_ms=7", "guard=false", "reservation_mode=yielding"]
    assert policies.parse_overrides(given) == {
        "yield_rows": 3,
        "yield_hold_ms": 50.5,
        "window_ms": 7,
        "guard": False,
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


@pytest.mark.slow
def test_the_command_prints_every_figure_for_each_policy(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = f"simulate --workload origin --policies ours,bands --seeds 2 --hours 0.05 --json {out}"
    assert main(arguments.split(), {}, COMMANDS) == 0
    rows = json.loads(out.read_text())["workloads"]["origin"]["policies"]
    assert list(rows) == ["online-only", "ours", "bands"]
    assert {
        *("ttft_ratio", "e2e_added_ms", "harvest", "busy_ratio", "wasted_ratio", "preemptions", "over_eviction"),
        *("offline_tokens_per_s", "ceiling_tokens_per_s", "itl_ratio", "other_tenants_ttft_ratio"),
        *("completion_spread_days", "offline_contended_share", "worst_window_share", "window_violations"),
        *("starvation_gap", "trace_sha256"),
    } <= set(rows["ours"])
    assert rows["online-only"]["e2e_added_ms"] == {"p50": 0.0, "p99": 0.0}


@pytest.mark.slow
def test_processes_share_the_runs_and_change_nothing(tmp_path: Path) -> None:
    arguments = "simulate --policies ours,bands --seeds 2 --hours 0.02"
    reports = []
    for jobs in (1, 2):
        out = tmp_path / f"{jobs}.json"
        assert main([*arguments.split(), "--jobs", str(jobs), "--json", str(out)], {}, COMMANDS) == 0
        reports.append(json.loads(out.read_text()))
    assert reports[0] == reports[1]


def test_the_process_that_shares_its_runs_does_not_fork() -> None:
    """Its threads may hold locks, and those of gRPC do: a child that forks off beside them may crash."""
    forks: list[int] = []
    os.register_at_fork(before=lambda: forks.append(1))
    assert main("simulate --policies ours --seeds 1 --hours 0.005 --jobs 2".split(), {}, COMMANDS) == 0
    assert forks == []


def die(_plan: RunPlan, _policy: Policy) -> Result:
    os._exit(1)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_simulation_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "run", die)
    assert main("simulate --policies ours --seeds 1 --jobs 2".split(), {}, COMMANDS) == 1
    assert "was there memory for all --jobs?" in capsys.readouterr().err


def test_recorded_arrivals_take_the_place_of_drawn_ones(tmp_path: Path) -> None:
    recorded = tmp_path / "arrivals.csv"
    assert main(f"simulate --hours 0.05 --write-arrivals {recorded}".split(), {}, COMMANDS) == 0
    out = tmp_path / "out.json"
    arguments = f"simulate --arrivals {recorded} --policies ours --seeds 1 --hours 0.05 --json {out}"
    assert main(arguments.split(), {}, COMMANDS) == 0
    row = json.loads(out.read_text())["workloads"]["arrivals"]["policies"]["ours"]
    assert row["online"]["n"] == len(read_csv(recorded, 10_000).jobs)


@pytest.mark.parametrize(
    "arguments",
    ["--policies best", "--profile 400b", "--set windows=3", "--set window_ms=soon", "--seeds 0", "--faults"],
)
def test_a_nonsense_argument_is_one_line_and_exit_code_2(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *arguments.split()], {}, COMMANDS) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_bound_is_the_time_in_which_online_leaves_the_engine_idle(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = "simulate --workload conversation-0.1 --policies bound --seeds 1 --hours 0.1 --json"
    assert main([*arguments.split(), str(out)], {}, COMMANDS) == 0
    found = json.loads(out.read_text())["workloads"]["conversation-0.1"]
    bound, alone = (
        found["policies"]["bound"],
        run(
            replace(PLAN, workload=workloads.by_name("conversation-0.1"), slots=64, hours=0.1),
            policies.by_name("online-only"),
        ),
    )
    assert bound["harvest"] == pytest.approx(alone.idle_ratio)
    assert 0.2 < bound["harvest"] < 0.9
    assert bound["price_ms"]["mean"] == 0
    assert bound["offline_tokens_per_s"] == pytest.approx(bound["harvest"] * bound["ceiling_tokens_per_s"])


@pytest.mark.slow
def test_sliced_items_set_the_ceiling_where_whole_ones_reserve_too_much(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = "simulate --workload kv-tight --policies ours --seeds 1 --hours 0.1 --json"
    assert main([*arguments.split(), str(out)], {}, COMMANDS) == 0
    found = json.loads(out.read_text())["workloads"]["kv-tight"]
    ceilings = found["ceilings_tokens_per_s"]
    assert ceilings["offline-only-sliced"] > 1.1 * ceilings["offline-only"]
    assert found["policies"]["ours"]["ceiling_tokens_per_s"] == ceilings["offline-only-sliced"]


@pytest.mark.parametrize("name", ["static-cap-5", "aimd-ttft-450", "ours@window_ms=3+guard=false", "ideal"])
def test_a_policy_with_a_number_or_settings_in_its_name_survives_the_way_between_processes(name: str) -> None:
    policy = policies.by_name(name)
    again = pickle.loads(pickle.dumps(policy))
    assert (again.name, again.changes, again.prices) == (name, policy.changes, policy.prices)


def test_what_a_name_sets_is_set() -> None:
    scheduler, _ = policies.by_name("ours@window_ms=3+guard=false").settings(PLAN.shape)
    assert (scheduler.window_ms, scheduler.guard) == (3, False)
    with pytest.raises(SettingsError, match="unknown setting 'windows'"):
        policies.by_name("ours@windows=3")
    with pytest.raises(SettingsError, match="unknown policy"):
        policies.by_name("naive@window_ms=3")
