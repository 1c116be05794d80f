"""Every bench says what it ran on, and writes its figures where it was told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dev import figures
from dev.figures import ran_on, write


def test_the_versions_the_cores_and_the_load_of_the_machine_are_said() -> None:
    found = ran_on()
    assert {"python", "numpy", "processor", "cores", "load_average", "blas_threads"} <= found.keys()
    assert found["cores"] >= 1
    assert found["load_average"] >= 0
    json.dumps(found)


@pytest.mark.parametrize("target", [None, "-"])
def test_without_a_file_the_figures_go_to_standard_output(
    target: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    write({"a": 1}, target)
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_figures_for_a_file_are_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write({"a": 1}, str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": 1}
    assert capsys.readouterr().out == ""


def test_a_program_that_has_more_threads_starts_itself_again_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, command: started.append(command))
    monkeypatch.setattr(figures, "_module_name", lambda: "dev.bench.engine")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    figures.one_blas_thread()
    figures.one_blas_thread()
    assert len(started) == 1, "it has one thread now"
    assert started[0][1:3] == ["-m", "dev.bench.engine"]
