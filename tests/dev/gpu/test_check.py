"""The steps of a check: each is kept, whatever becomes of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from dev.gpu.check import Check, plans


def options(out: Path, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"out": out, "device": "cuda", "budget_s": 100.0, "set": [], "ours": [], **more})


async def test_a_step_that_fails_takes_nothing_from_the_next_and_one_without_time_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def works() -> dict[str, Any]:
        return {"found": 1}

    async def fails() -> dict[str, Any]:
        raise OSError("no card")

    monkeypatch.setenv("GPU_CHECK_COMMIT", "abc")
    check = Check(options(tmp_path), tmp_path)
    await check.step("one", "8b", 1.0, fails)
    await check.step("two", "8b", 1.0, works)
    await check.step("three", "8b", 1000.0, works)
    document = json.loads((tmp_path / "gpu_check.json").read_text())
    assert document["commit"] == "abc"
    assert document["options"]["budget_s"] == "100.0"
    first, second, third = document["steps"]
    assert (first["failed"], second["found"]) == ("OSError: no card", 1)
    assert third["skipped"].startswith("it needs 1000 s, and ")
    assert "8b one: OSError: no card" in (tmp_path / "gpu_check.md").read_text()


def test_further_settings_are_further_runs_of_the_same_arrivals(tmp_path: Path) -> None:
    found = [plan.name for plan in plans(options(tmp_path, set=["a=1"], ours=["b=2,c=3"]))]
    assert found == [
        "conversation-1.5 alone",
        "conversation-1.5 ours a=1",
        "conversation-1.5 ours a=1 b=2 c=3",
        "conversation-1.5 cap-16",
        "constant-1 alone",
        "constant-1 ours a=1",
        "constant-1 ours a=1 b=2 c=3",
        "conversation-1.5 ceiling",
    ]
