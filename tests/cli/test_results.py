"""`sidecar results` from the command line, without a broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.batch.results import Gathered
from sidecar.cli import main, results
from sidecar.cli.results import UNFINISHED, register_results


def call(monkeypatch: pytest.MonkeyPatch, found: Gathered, *arguments: str) -> tuple[int, dict[str, Any]]:
    asked: dict[str, Any] = {}

    async def gather(
        settings: Any, job: Any, output: Path, errors: Path, *, follow: bool, on_progress: Any
    ) -> Gathered:
        asked.update(jobs_topic=settings.jobs_topic, job=job, output=output, errors=errors, follow=follow)
        on_progress(found)
        return found

    monkeypatch.setattr(results, "gather", gather)
    return main.main(("results", "--job", "nightly", *arguments), {}, [register_results]), asked


def test_the_files_are_named_and_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, asked = call(monkeypatch, Gathered(results=1200, errors=3, items=1203), "-o", "a/out.jsonl", "--follow")
    assert code == 0
    assert asked == {
        "jobs_topic": "inference.jobs",
        "job": ("default", "nightly"),
        "output": Path("a/out.jsonl"),
        "errors": Path("a/out.errors.jsonl"),
        "follow": True,
    }
    assert capsys.readouterr().out == "1,200 results in a/out.jsonl, 3 errors in a/out.errors.jsonl of 1,203 items\n"


def test_a_job_that_is_not_over_has_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("-o", "out", "--errors", "err", "--tenant", "lab", "--bootstrap-servers", "k:1")
    code, asked = call(monkeypatch, Gathered(results=1, errors=0, items=2), *arguments)
    assert (code, asked["job"], asked["errors"]) == (UNFINISHED, ("lab", "nightly"), Path("err"))
    assert "sidecar job show nightly --bootstrap-servers k:1" in capsys.readouterr().out


def test_programs_read_the_counts_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    call(monkeypatch, Gathered(results=1, errors=0, items=None), "-o", "out", "--json")
    assert json.loads(capsys.readouterr().out) == {"results": 1, "errors": 0, "items": None, "complete": False}
