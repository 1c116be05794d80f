"""What `doctor --profile` says: how long iterations take, and whether a first token can come in time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sidecar.cli.profile_findings import profile_findings
from sidecar.core.errors import SettingsError
from sidecar.settings.file import EngineEndpoint, ServeSettings

SETTINGS = ServeSettings(engines=(EngineEndpoint(name="a", target="127.0.0.1:1", slots=64),))


def test_an_engine_s_iterations_are_told() -> None:
    told = "an iteration takes 9.1 ms with one row and 12.2 ms with 64"
    assert list(profile_findings("8b-a100", SETTINGS)) == [("ok", f"engine a, by profile 8b-a100: {told}")]


def test_iterations_longer_than_the_objective_are_a_warning(tmp_path: Path) -> None:
    points = [[1, 300.0], [64, 600.0]]
    file = tmp_path / "slow.json"
    file.write_text(json.dumps({"name": "slow", "source": "a test", "gpu": "none", "points": points}))
    verdict, told = list(profile_findings(str(file), SETTINGS))[1]
    assert (verdict, told) == ("warning", "engine a: no first token comes within ttft_objective_ms, 500")


@pytest.mark.parametrize(("name", "told"), [("none", "unknown profile 'none'"), ("none.json", "cannot read none.json")])
def test_no_such_profile_is_a_mistake_in_the_arguments(name: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        list(profile_findings(name, SETTINGS))
