"""Other settings are tried on a recording."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.core.errors import SettingsError
from sidecar.core.request import Lane
from sidecar.sim import whatif
from sidecar.sim.policies import parse_overrides
from sidecar.sim.replay import recorded
from tests.sim.recorded_minute import PROFILE, jobs


def test_the_same_settings_give_the_same_figures_and_others_do_not(files: list[Path]) -> None:
    found = recorded(files)
    same = whatif.compare(found, ["slots=8"], PROFILE)
    other = whatif.compare(found, ["slots=4", "yield_rows=0"], PROFILE)

    assert same["replayed"] == same["changed"] == other["replayed"]
    assert other["changed"]["offline_tokens_per_s"] < other["replayed"]["offline_tokens_per_s"]
    assert same["replayed"]["online"]["cancelled"] == 1
    assert other["what_if"] == {"slots": "4", "yield_rows": "0"}


def test_a_recording_simulated_again_meets_what_was_recorded(files: list[Path]) -> None:
    """The recording came out of the simulator, so with its own iteration times everything must come out again."""
    found = recorded(files)
    figures = whatif.run(found, found.settings, found.engines, PROFILE)

    online = [job for job in jobs() if job.request.lane is Lane.ONLINE]
    assert figures["online"]["n"] + figures["online"]["cancelled"] == len(online)
    fitted = whatif.compare(found, ["slots=8"], None)["replayed"]
    assert fitted["online"]["ttft_ms"]["p50"] == pytest.approx(figures["online"]["ttft_ms"]["p50"], rel=0.1)
    assert fitted["offline_tokens_per_s"] == pytest.approx(figures["offline_tokens_per_s"], rel=0.1)


def test_the_command_prints_both_side_by_side(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ["preempt=false", "yield_rows=never"]
    arguments = ["replay", *map(str, files), "--what-if", *pairs, "--profile", PROFILE.name]

    assert main(arguments, {}, COMMANDS) == 0
    shown = capsys.readouterr().out
    assert "as recorded" in shown
    assert "replayed" in shown
    assert "preempt=False" in shown
    assert main([*arguments, "--json"], {}, COMMANDS) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["changed"]["preemptions"] == 0 < report["replayed"]["preemptions"]


def test_a_setting_that_does_not_exist_is_one_line_and_exit_code_2(
    files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(each) for each in files]
    for pair in ("slotz=4", "name=x", "model=x", "slots=many", "slots=0"):
        assert main(["replay", *paths, "--what-if", pair], {}, COMMANDS) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["replay", *paths, "--what-if", "slots=4", "--profile", "h100"], {}, COMMANDS) == 2
    assert "unknown profile" in capsys.readouterr().err
    with pytest.raises(SettingsError):
        parse_overrides(["tenant_weights=3"])
