"""The main job as a user runs it, shortened: both servers for real, both lanes, and the independent reader."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dev.chats import FIRST_QUESTION
from sidecar.sim.replay import replay
from sidecar.telemetry.segment_files import segments

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_the_demo_fills_the_slots_keeps_the_reservation_and_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "dev.demo", "--model", "toy", "--seconds", "6", "--seed", "3", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr  # 3: the host is too slow for figures of latency
    report = json.loads(file.read_text())
    offline, overload = report["offline"], report["phases"]["overload"]["grants"]

    _replay_brings_the_same_decisions(done.stdout)
    assert report["triton"]["backend"] == "python"
    assert [phase["online"]["errors"] for phase in report["phases"].values()] == [0, 0, 0]
    assert report["phases"]["online_only"]["tokens_per_s"]["offline"] == 0
    assert report["phases"]["mixed"]["tokens_per_s"]["offline"] > 0
    assert overload["contended"] >= 100
    assert report["verdict"]["exit_code"] == done.returncode
    assert f"verdict: {sum(each['kept'] is True for each in report['verdict']['promises'])} of 5" in done.stdout
    assert overload["turns_due"] == overload["turns_taken"] + overload["turns_lapsed"]
    assert overload["turns_lapsed"] <= 1
    assert overload["window_violations"] == 0
    assert (offline["lost"], offline["duplicated"]) == (0, 0)
    assert offline["source_offsets"] == offline["results"] + offline["dead"]
    done = offline["results"] + offline["dead"] + offline["early"]
    assert sum(offline["ended_by"].values()) <= done
    assert offline["ended_by"]["end_id"] > 0
    assert offline["ended_by"]["stop_word"] > 0


def test_with_the_chat_model_both_lanes_answer_and_some_of_it_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "dev.demo", "--seconds", "8", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    report = json.loads(file.read_text())
    assert (report["engine"]["model"], report["engine"]["profile"]) == ("smollm2", None)
    assert [phase["online"]["errors"] for phase in report["phases"].values()] == [0, 0, 0]
    assert (report["offline"]["lost"], report["offline"]["duplicated"]) == (0, 0)
    assert report["offline"]["ended_by"]["stop_word"] > 0
    assert report["verdict"]["promises"][-1]["kept"] is None
    answers = [each for lane in ("online", "offline") for each in report["answers"][lane]]
    assert len(report["answers"]["online"]) >= 2
    assert len(report["answers"]["offline"]) >= 2
    assert f'sidecar chat "{FIRST_QUESTION}"' in done.stdout
    assert "Paris" in done.stdout
    assert all(each["answer"].strip() and "<|" not in each["answer"] for each in answers)
    assert all(" ".join(each["asked"].split()) in done.stdout for each in answers)


def _replay_brings_the_same_decisions(output: str) -> None:
    found = re.search(r"recorded decisions are in (\S+)", output)
    assert found is not None
    (segment,) = segments(Path(found[1]) / "decisions")
    result = replay([segment])
    assert (result.mismatches, result.first_mismatch) == (0, None)
    assert result.records > 1000
