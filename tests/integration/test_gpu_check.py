"""`scripts/gpu_check` end to end where no card is: the real Triton, the engine in PyTorch on a CPU, the sidecar."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from dev.triton import ROOT
from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not (ROOT / ".venv-torch").exists(), reason="no PyTorch here: see scripts/setup --torch"),
]


def test_every_step_passes_and_its_profile_is_one_that_simulate_reads(tmp_path: Path) -> None:
    asked = ("--device", "cpu", "--presets", "tiny", "--ours", "scheduler.slice_tokens=16", "--out", str(tmp_path))
    subprocess.run((str(ROOT / "scripts/gpu_check"), *asked), check=True)
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["commit"] != "unknown"
    runs = ["alone", "ours", "ours scheduler.slice_tokens=16", "cap-4", "ceiling"]
    names = ["server", *(f"conversation-4 {each}" for each in runs), "curve", "resume"]
    assert [step["step"] for step in found["steps"]] == names
    steps = {step["step"]: step for step in found["steps"]}
    alone, other = steps["conversation-4 alone"], steps["conversation-4 ours scheduler.slice_tokens=16"]
    assert alone["online"]["errors"] == other["online"]["errors"] == []
    assert other["sidecar"]["scheduler"] == {"slice_tokens": 16}
    assert other["paired"]["pairs"] == alone["online"]["due"] > 0
    assert steps["conversation-4 ceiling"]["offline_tokens_per_s"] > 0
    assert steps["resume"]["items_identical"] == steps["resume"]["items"] == 8
    few = ("--workload", "origin", "--policies", "online-only", "--hours", "0.005", "--seeds", "1")
    figures, profile = tmp_path / "figures.json", str(tmp_path / "profile-tiny.json")
    assert main(["simulate", "--profile", profile, *few, "--json", str(figures)], {}, COMMANDS) == 0
    assert '"tiny-cpu"' in figures.read_text()
