"""The files that only other machines execute: they are YAML, and name what is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
READ_BY = {  # what each ecosystem of dependabot looks for in its directory
    "pip": ("pyproject.toml", "requirements.txt"),
    "maven": ("pom.xml",),
    "docker": ("Dockerfile",),
    "github-actions": (".github/workflows",),
}


def read(file: str) -> dict[Any, Any]:
    found = yaml.safe_load((ROOT / file).read_text())
    assert isinstance(found, dict)
    return found


def test_every_hook_runs_a_program_of_the_checkout() -> None:
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "mypy", "check"}
    for hook in hooks:
        assert hook["language"] == "system"
        assert os.access(ROOT / hook["entry"].split()[0], os.X_OK), hook["entry"]


def test_the_workflow_runs_every_test_and_builds_the_image_with_no_right_but_to_read() -> None:
    workflow = read(".github/workflows/check.yml")
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the word `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    commands = {step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step}
    assert ".ci/run" in commands
    assert any("docker build" in command and "deploy/Dockerfile" in command for command in commands)
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


@pytest.mark.parametrize("update", read(".github/dependabot.yml")["updates"], ids=lambda each: str(each["directory"]))
def test_dependabot_looks_where_something_is(update: dict[str, Any]) -> None:
    directory = ROOT / update["directory"].removeprefix("/")
    assert any((directory / name).exists() for name in READ_BY[update["package-ecosystem"]])


def test_a_weakness_is_reported_in_private_and_contributors_find_each_script() -> None:
    assert "privately" in (ROOT / "SECURITY.md").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for name in ("check", "test", "mutants", "setup", "pins"):
        assert f"scripts/{name}" in contributing
        assert os.access(ROOT / "scripts" / name, os.X_OK)
