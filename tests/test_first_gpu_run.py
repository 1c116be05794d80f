"""The page that leads a person through a first GPU host names only what is there."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml

from sidecar import __version__
from sidecar.__main__ import COMMANDS
from sidecar.cli.engine_build import memory_plan
from sidecar.telemetry.metric_table import METRICS
from tests.cli.test_engine_build import CASES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/first-gpu-run.md").read_text()
LINES = [line.strip() for line in PAGE.splitlines() if line.startswith("    ")]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def words_of_the_sidecar() -> list[list[str]]:
    """The arguments of each command of ours on the page."""
    found = [line.partition(" sidecar ")[2] for line in LINES if " sidecar " in line]
    found += [line.replace("scripts/build_engine", "build-engine") for line in LINES if line.startswith("scripts/")]
    return [shlex.split(each) for each in found]


@pytest.mark.parametrize("words", words_of_the_sidecar(), ids=" ".join)
def test_every_command_of_ours_takes_its_arguments(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(dest="command")
    for register in COMMANDS:
        register(subparsers)
    assert parser.parse_args(words).command == words[0]


def test_the_services_and_profiles_are_those_of_the_compose_file() -> None:
    profiles = {each for service in SERVICES.values() for each in service.get("profiles", ())}
    assert set(re.findall(r"docker compose (?:exec|logs) ([\w-]+)", PAGE)) <= SERVICES.keys()
    assert set(re.findall(r"--profile (\w+)", PAGE)) <= profiles
    assert {"ENGINE_DIR", "TOKENIZER_DIR"} == set(re.findall(r"[A-Z]+_DIR(?==)", PAGE))


def test_the_figures_that_it_looks_at_are_exported() -> None:
    assert set(re.findall(r"sidecar_\w+", PAGE)) <= {each.name for each in METRICS}
    assert f"backfill-sidecar:{__version__}" in PAGE


def test_the_size_of_the_cache_is_the_one_that_is_reckoned() -> None:
    profile, shape, _ = CASES["8b-tp1"]
    (told,) = re.findall(r"([\d,]+) tokens, ± 10 %", PAGE)
    assert abs(int(told.replace(",", "")) - memory_plan(profile, shape).kv_tokens) < 1000
