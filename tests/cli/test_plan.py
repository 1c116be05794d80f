"""`sidecar plan` prints what it reckons, as tables and as JSON, and says what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["plan", "--json", "-", *arguments], {}, COMMANDS)
    return code, json.loads(capsys.readouterr().out)


def test_the_figures_come_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--cost 6,0.18 --batches 1,512 --usd-per-hour 3.00,0.90 --slo-ms 100 --users 500".split()
    code, found = planned(capsys, *arguments)
    assert (code, found["o_ms"], found["c_ms"]) == (0, 6.0, 0.18)
    assert [round(row["usd_per_million"], 4) for row in found["usd_per_million"]] == [5.15, 0.0479]
    assert round(found["usd_per_million"][1]["times_cheaper"], 1) == 107.4
    assert found["batch_max"] == 188
    assert [each["replicas"] for each in found["replicas"]] == [100, 125, 17]
    assert found["memory"][0]["sequences"] == 30


def test_a_small_model_stands_beside_a_large_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = planned(capsys, "--against", "8b:1")
    large, small = found["memory"]
    assert code == 0
    assert (large["sequences"], small["sequences"]) == (30, 27)
    assert large["usd_per_million_when_full"] / small["usd_per_million_when_full"] > 8


def test_the_tables_are_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = (tmp_path / "plan.json", tmp_path / "plan.svg")
    arguments = f"--cost 6,0.2 --slo-ms 100 --users 500 --json {files[0]} --plot {files[1]}".split()
    assert main(["plan", *arguments], {}, COMMANDS) == 0
    shown = capsys.readouterr().out
    assert "T(b) = 6 + 0.2·b ms; doubling saves < 5 % from 271" in shown
    assert "499,277" in shown
    assert "100: 5 streams at 56 ms a token; 15 warm" in shown
    assert json.loads(files[0].read_text())["batch_max"] == 170
    assert files[1].read_text().startswith("<svg")


def test_what_does_not_fit_is_refused_with_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "70b:2"], {}, COMMANDS) == 1
    told = capsys.readouterr()
    assert told.err.startswith("sidecar: refused: 70b over 2 GPUs: only 3 sequences of 16,384 tokens fit")
    assert "65.8" in told.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--kv int8", "a KV cache in int8 has no paged context attention"),
        ("--model 13b:1", "'13b:1' is no MODEL:GPUS; known models: 70b, 8b, 7b"),
        ("--model 70b", "'70b' is no MODEL:GPUS"),
        ("--model 32b=32.8,64:2", "'32b=32.8,64:2' is no MODEL:GPUS"),
        ("--model 70b:0", "a plan needs tp >= 1"),
        ("--cost 6", "--cost must be two numbers, O,C"),
        ("--cost 6,0", "needs o >= 0 ms and c > 0 ms"),
        ("--fit 1:6", "--fit must be two measurements, B:MS,B:MS"),
        ("--batches 0", "--batches must be >= 1"),
        ("--batches one", "invalid literal"),
        ("--usd-per-hour nan", "above 0"),
        ("--usd-per-hour 3,2", "one for all batches, or one for each"),
        ("--users 500 --tpot-ms 1", "cannot be: T(1) is"),
        ("--users 500 --peak-to-mean 0", "--peak-to-mean must be above 0, not 0"),
        ("--peak-to-mean nan", "--peak-to-mean must be above 0, not nan"),
        ("--slo-ms nan", "--slo-ms must be above 0, not nan"),
        ("--slo-ms -1", "--slo-ms must be above 0, not -1"),
        ("--length 0", "--length must be above 0, not 0"),
        ("--users 0", "--users must be above 0, not 0"),
        ("--tokens-per-s inf", "--tokens-per-s must be above 0, not inf"),
    ],
)
def test_nonsense_is_one_line(capsys: pytest.CaptureFixture[str], arguments: str, says: str) -> None:
    assert main(["plan", *arguments.split()], {}, COMMANDS) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("sidecar: plan: ")
    assert says in told.err
    assert told.err.count("\n") == 1


def test_any_model_can_be_stated_by_its_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = planned(capsys, "--model", "mine=70.6,80,8,128:4")
    assert (code, found["memory"][0]["model"], found["memory"][0]["kv_tokens"]) == (0, "mine", 499_277)
