"""Policies and seeds are run in one process or in several, with the same figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.sim import comparison
from sidecar.sim.policies import Policy
from sidecar.sim.simulation_run import Result, RunPlan


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
