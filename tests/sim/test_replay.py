"""Recorded events go through the scheduler again, and what differs is counted and named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.sim.replay import replay
from tests.sim.recorded_minute import record


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return record(tmp_path_factory.mktemp("parts"), per_token=False, segment_records_max=1000)


def test_a_check_of_several_segments_adds_up_and_prints_the_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = record(tmp_path, per_token=False, segment_records_max=1000)

    assert main(["replay", *map(str, parts), "--check", "--json"], {}, COMMANDS) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mismatches"] == 0
    assert report["records"] > 1500
    assert report["actions"] > 100

    with gzip.open(parts[1], "rt") as file:
        lines = file.read().splitlines()
    index = next(n for n, line in enumerate(lines) if '[["Dispatch"' in line)
    now_s, event, _ = json.loads(lines[index])
    lines[index] = json.dumps([now_s, event, []])
    with gzip.open(parts[1], "wt") as file:
        file.write("\n".join(lines) + "\n")
    assert main(["replay", *map(str, parts), "--check"], {}, COMMANDS) == 1
    assert f"{parts[1]}: record " in capsys.readouterr().err


def test_what_was_recorded_comes_out_again_bit_for_bit(parts: list[Path]) -> None:
    found = replay(parts)
    assert (found.mismatches, found.first_mismatch, found.missing, found.truncated) == (0, None, 0, False)
    assert found.records > 1500


def test_the_first_of_several_differences_is_told_and_all_are_counted(tmp_path: Path, parts: list[Path]) -> None:
    with gzip.open(parts[0], "rt") as file:
        lines = file.read().splitlines()
    changed = [number for number, line in enumerate(lines) if '[["Dispatch"' in line][:3]
    for number in changed:
        now_s, event, _ = json.loads(lines[number])
        lines[number] = json.dumps([now_s, event, []])
    path = tmp_path / parts[0].name
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    found = replay([path])
    assert found.mismatches == 3
    assert found.first_mismatch is not None
    assert "recorded was []" in found.first_mismatch


def test_a_segment_without_its_last_line_is_replayed_and_called_cut_off(tmp_path: Path, parts: list[Path]) -> None:
    with gzip.open(parts[0], "rt") as file:
        lines = file.read().splitlines()
    path = tmp_path / parts[0].name
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines[:-1]) + "\n")
    found = replay([path])
    assert (found.mismatches, found.truncated) == (0, True)
    assert found.notes == [f"{path}: the end is cut off; the writer was killed, or still writes"]
