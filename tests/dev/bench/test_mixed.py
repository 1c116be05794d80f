"""The mixed bench: what it sends, who decides in it, and what it makes of its runs. The servers are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.bench import mixed
from dev.bench._mixed_prediction import Run
from dev.load import LoadResult


def run(policy: str, seed: int, tokens_per_s: float, overruns: float, directory: Path = Path()) -> Run:
    load = LoadResult(sent=2, ttft_ms=[10.0 * seed, 20.0 * seed], e2e_ms=[30.0, 40.0])
    return Run(
        policy=policy,
        seed=seed,
        load=load,
        offline_tokens_per_s=tokens_per_s,
        overrun_ratio=overruns,
        directory=directory,
    )


def test_harvest_is_measured_against_the_ceiling_and_late_runs_are_not_valid() -> None:
    figures = mixed.policy_figures([run("ours", 1, 60.0, 0.0), run("ours", 2, 80.0, 0.02)], ceiling=100.0)

    assert (figures["harvest"], figures["valid"], figures["n"]) == (0.7, False, 4)
    assert figures["ttft_ms"]["p50"] == 20.0
    assert mixed.policy_figures([run("ours", 1, 60.0, 0.01)], ceiling=100.0)["valid"]
    assert mixed.policy_figures([run("online-only", 1, 0.0, 0.0)], ceiling=100.0)["harvest"] is None


def test_overruns_are_counted_between_two_readings_of_growing_counters() -> None:
    before = {"iterations": 1000, "pacing_overrun_ratio": 0.5}
    after = {"iterations": 2000, "pacing_overrun_ratio": 0.255}

    assert mixed._overrun_ratio(before, after) == pytest.approx(0.01)
    assert mixed._overrun_ratio(after, after) == 0.0


def test_options_that_make_no_sense_are_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--policies", "ours,naive"], ["--seconds", "1"], ["--slots", "65"], ["--workloads", "kneel"]):
        with pytest.raises(SystemExit, match="2"):
            mixed.parse(arguments)
        assert "error: " in capsys.readouterr().err
    assert mixed.parse([]).workloads == ["knee", "origin"]
