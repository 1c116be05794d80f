"""Triton starts as one process for each rank of the engine, of which the first alone serves."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from sidecar.cli.launch import launch_script
from sidecar.cli.serving_profile import load_profile
from tests.cli.test_serving_profile import NAMES, ROOT


def processes(script: str, tmp_path: Path) -> list[list[str]]:
    """The tritonserver command lines that run.sh would start, told by programs that only print their arguments."""
    file, programs = tmp_path / "run.sh", tmp_path / "bin"
    file.write_text(script)
    programs.mkdir()
    for name in ("mpirun", "tritonserver"):
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@"\n')
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(file)], env={"PATH": f"{programs}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    if words[0] == "tritonserver":
        return [words]
    assert words[:2] == ["mpirun", "--allow-run-as-root"]
    found: list[list[str]] = []
    for word in words[2:]:
        if word == "tritonserver":
            found.append([])
        if word not in ("-n", "1", ":"):
            found[-1].append(word)
    assert words.count(":") == len(found) - 1
    return found


@pytest.mark.parametrize("name", NAMES)
def test_there_are_as_many_processes_as_ranks(name: str, tmp_path: Path) -> None:
    profile = load_profile(name, ROOT)
    found = processes(launch_script(profile, "0.0.0.0:8001"), tmp_path)
    assert len(found) == (1 if profile.backend == "llmapi" else profile.tensor_parallel_size)
    assert [each[1] for each in found] == [f"--id=rank{rank}" for rank in range(len(found))]
    regions = {word for each in found for word in each if "shm-region-prefix-name" in word}
    assert len(regions) == len(found)


def test_only_the_first_rank_listens_and_loads_the_text_models(tmp_path: Path) -> None:
    first, *others = processes(launch_script(load_profile("70b-tp8", ROOT), "127.0.0.1:8011"), tmp_path)
    assert first[2:6] == [
        f"--model-repository={tmp_path}/text",
        f"--model-repository={tmp_path}/engine",
        "--grpc-address=127.0.0.1",
        "--grpc-port=8011",
    ]
    assert len(others) == 7
    for each in others:
        assert [word for word in each if word.startswith("--model-repository")] == [
            f"--model-repository={tmp_path}/engine"
        ]
        assert {"--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"} <= set(each)
        assert {"--model-control-mode=explicit", "--load-model=tensorrt_llm"} <= set(each)


@pytest.mark.parametrize("name", ["70b-tp8", "llmapi"])
def test_process_one_of_the_container_gets_the_signal(name: str) -> None:
    commands = shlex.split(launch_script(load_profile(name, ROOT), "0.0.0.0:8001"), comments=True)
    assert commands.count("exec") == 1
    assert commands[commands.index("exec") + 1] == ("mpirun" if name == "70b-tp8" else "tritonserver")
