"""Both compose files parse, and say the same as the rest of the project about versions, topics and settings."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar import __version__
from sidecar.__main__ import COMMANDS
from sidecar.cli.init import FILES
from sidecar.settings.file import ServeSettings, load_settings

ROOT = Path(__file__).parent.parent
PRODUCTION = ROOT / "docker-compose.yml"
STARTING = ROOT / "sidecar/data/compose.yml"
SERVICES: dict[Path, dict[str, Any]] = {
    file: yaml.safe_load(file.read_text())["services"] for file in (PRODUCTION, STARTING)
}
BOTH = pytest.mark.parametrize("file", SERVICES, ids=("production", "starting set"))


def test_compose_runs_the_broker_version_that_the_tests_run() -> None:
    pinned = re.search(r"kafka_2\.13</artifactId><version>([^<]+)<", (ROOT / "kafka/pom.xml").read_text())
    assert pinned is not None
    assert SERVICES[PRODUCTION]["kafka"]["image"] == f"apache/kafka:{pinned[1]}"


def test_the_starting_set_has_the_broker_of_the_production_shape() -> None:
    assert SERVICES[STARTING]["kafka"] == SERVICES[PRODUCTION]["kafka"]


@BOTH
def test_compose_runs_commands_of_this_version_that_the_sidecar_would_take(file: Path) -> None:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(dest="command")
    for register in COMMANDS:
        register(subparsers)
    ours = [each for each in SERVICES[file].values() if f"backfill-sidecar:{__version__}" in each["image"]]
    commands = [parser.parse_args(each["command"]) for each in ours]
    assert {each.command for each in commands} == {"topics", "serve"} | ({"fill"} if file == PRODUCTION else set())
    assert {str(each.config) for each in commands if each.command != "fill"} == {"sidecar.yaml"}


def test_every_mounted_file_of_the_project_exists() -> None:
    for service in SERVICES[PRODUCTION].values():
        for volume in service.get("volumes", ()):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists(), volume


def test_the_starting_set_mounts_only_its_own_directory() -> None:
    for name in ("topics", "sidecar"):
        assert SERVICES[STARTING][name]["volumes"] == [".:/etc/sidecar:ro"]
    assert {"sidecar.yaml", "topics.yaml"} <= FILES.keys()


@BOTH
def test_a_compose_parser_accepts_the_file(file: Path) -> None:
    parser = shutil.which("docker-compose")
    if parser is None:
        pytest.skip("docker-compose is not installed; .ci/run installs it")
    command = [parser, "-f", str(file), "config", "-q"]
    places = {"ENGINE_DIR": "/srv/engine", "TOKENIZER_DIR": "/srv/tokenizer"}
    done = subprocess.run(
        command, cwd=file.parent, env={**os.environ, **places}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_mounted_settings_are_valid_but_for_paths_of_the_container() -> None:
    tokenizer = ROOT / "model_repository/tokenizer/tokenizer.json"
    settings = load_settings(ROOT / "sidecar/data/sidecar.example.yaml", {"SIDECAR__TOKENIZER": str(tokenizer)})

    assert settings.offline is not None
    assert settings.offline.bootstrap_servers == "kafka:9092"
    assert [engine.target for engine in settings.engines] == ["triton:8001"]


def test_every_setting_that_the_example_shows_is_known_and_those_that_users_look_for_are_shown(tmp_path: Path) -> None:
    """Also the settings that stand there as comments."""
    key, file = tmp_path / "key", tmp_path / "sidecar.yaml"
    key.write_text("secret")
    text = (ROOT / "sidecar/data/sidecar.example.yaml").read_text()
    document = yaml.safe_load(re.sub(r"^( *)# (?= *(?:[a-z_]+:|- \{))", r"\1", text, flags=re.M))
    document["tokenizer"] = str(ROOT / "model_repository/tokenizer/tokenizer.json")
    (engine,) = document["engines"]
    engine["metadata_files"] = dict.fromkeys(engine["metadata_files"], str(key))
    document["engines"].append({"name": "small", "model": "tensorrt_llm_small", "text_model": None})
    file.write_text(yaml.safe_dump(document))

    load_settings(file, {})
    left_out = {"stop_timeout_s", "offline_drain_timeout_s"}  # nobody needs them before reading config.py
    assert {each.name for each in fields(ServeSettings)} - document.keys() == left_out
    wanted = {"reservation_every", "window_ms", "on_deadline", "online_queue_max", "ttft_objective_ms", "tenants"}
    assert wanted <= document["scheduler"].keys()
    wanted = {"bootstrap_servers", "security", "group", "instance_id", "first_start", "model_default", "progress_topic"}
    assert wanted <= document["offline"].keys()
