"""The command `sidecar simulate`: what it prints, takes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.sim.arrivals_file import read_csv


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
