"""The scenes are what a sidecar of today would tell: their documents have the parts that the page reads."""

from __future__ import annotations

import json
from pathlib import Path

from dev.page_scenes import RECORDED, SCENES, main


def test_a_scene_is_written_and_its_recorded_one_has_the_same_parts(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--scene", "idle"]) == 0
    made = json.loads((tmp_path / "idle.json").read_text())
    recorded = json.loads((RECORDED / "idle.json").read_text())
    assert made.keys() == recorded.keys()
    assert made["verdict"] == recorded["verdict"]
    assert made["history"].keys() == recorded["history"].keys()


def test_each_scene_is_recorded() -> None:
    assert {each.stem for each in RECORDED.glob("*.json")} == SCENES.keys()
