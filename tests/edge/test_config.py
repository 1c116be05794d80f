"""The settings file: every mistake is named, and nothing starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.core.errors import SettingsError
from sidecar.core.settings import TenantSettings
from sidecar.edge.config import load_settings
from sidecar.edge.tokens import Tokens

ENGINE = {"name": "e0", "target": "triton:8001"}


def written(path: Path, **document: Any) -> Path:
    file = path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def mistake(path: Path, environment: dict[str, str] | None = None, **document: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        load_settings(written(path, **document), environment or {})
    return str(raised.value)


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, engines=[ENGINE]), {})
    assert (settings.engines[0].slots, settings.engines[0].target) == (8, "triton:8001")
    assert settings.scheduler.reservation_every == 10
    assert settings.offline is None


def test_a_tenant_has_what_is_written_for_it_and_a_misspelt_limit_is_named(tmp_path: Path) -> None:
    limits = {"labels": {"weight": 2, "slots_max": 32}}
    settings = load_settings(written(tmp_path, engines=[ENGINE], scheduler={"tenants": limits}), {})
    assert settings.scheduler.tenants["labels"] == TenantSettings(weight=2.0, slots_max=32)
    message = mistake(tmp_path, engines=[ENGINE], scheduler={"tenants": {"labels": {"slot_max": 3}}})
    assert "labels.slot_max: unknown setting" in message


def test_the_environment_overrides_by_path(tmp_path: Path) -> None:
    environment = {
        "SIDECAR__SCHEDULER__WINDOW_MS": "5",
        "SIDECAR__ENGINES__0__SLOTS": "64",
        "SIDECAR__OFFLINE": "null",
        "PATH": "/bin",
    }
    settings = load_settings(written(tmp_path, engines=[ENGINE]), environment)
    assert (settings.scheduler.window_ms, settings.engines[0].slots) == (5, 64)


def test_an_unknown_name_is_an_error_with_its_path(tmp_path: Path) -> None:
    assert mistake(tmp_path, engines=[{**ENGINE, "slot": 8}]) == "engines.0.slot: unknown setting"


def test_every_mistake_has_a_line_of_its_own(tmp_path: Path) -> None:
    lines = mistake(tmp_path, engines=[{"slots": "many"}], scheduler={"window": 5}).splitlines()
    assert sorted(line.split(":")[0] for line in lines) == ["engines.0.name", "engines.0.slots", "scheduler.window"]


def test_a_value_out_of_range_is_named_with_its_range(tmp_path: Path) -> None:
    assert "slots must be >= 1, not 0" in mistake(tmp_path, engines=[{**ENGINE, "slots": 0}])


@pytest.mark.parametrize("target", ["triton", ":8001", "triton:grpc"])
def test_a_target_without_host_or_port_is_refused(tmp_path: Path, target: str) -> None:
    assert "target must be host:port" in mistake(tmp_path, engines=[{"name": "e0", "target": target}])


def test_two_engines_of_one_name_are_refused(tmp_path: Path) -> None:
    assert "a name of its own" in mistake(tmp_path, engines=[ENGINE, ENGINE])


def test_the_offline_lane_needs_a_tokenizer(tmp_path: Path) -> None:
    assert mistake(tmp_path, engines=[ENGINE], offline={}) == "offline: items need a tokenizer"


def test_a_file_that_is_no_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingsError, match="is no tokenizer"):
        Tokens.load(tmp_path / "tokenizer.json")


def test_an_override_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    message = mistake(tmp_path, {"SIDECAR__ENGINES__7__SLOTS": "1"}, engines=[ENGINE])
    assert message == "SIDECAR__ENGINES__7__SLOTS leads to no setting"


def test_a_file_that_is_not_yaml_or_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("engines: [")
    with pytest.raises(SettingsError, match="is not YAML"):
        load_settings(tmp_path / "bad.yaml", {})
    with pytest.raises(SettingsError, match=r"cannot read .*No such file"):
        load_settings(tmp_path / "none.yaml", {})


def test_the_program_ends_with_2_and_one_line_per_mistake(tmp_path: Path) -> None:
    file = written(tmp_path, engines=[{**ENGINE, "slot": 8}], http=":1")
    run = subprocess.run(
        (sys.executable, "-m", "sidecar", "serve", "--config", str(file)),
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.splitlines() == ["sidecar: engines.0.slot: unknown setting"]
