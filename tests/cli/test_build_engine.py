"""`sidecar build-engine` beside programs that only note their arguments: steps in order, and none after a fault."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sidecar.cli.build_engine import register_build_engine
from sidecar.cli.main import main
from tests.cli.test_engine_build import CONFIG_70B
from tests.cli.test_serving_profile import ROOT

A100 = "8.0, 81920, NVIDIA A100-SXM4-80GB"
DOCKER = """#!/bin/sh
case "$1" in
image) echo "nvcr.io/nvidia/tritonserver@sha256:abc"; exit 0 ;;
esac
echo "$*" >>{log}
case "$*" in *trtllm-build*) mkdir -p {out}/engine && cp {log}.engine {out}/engine/config.json ;; *) exit {code} ;; esac
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG_70B))
    return folder


def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, gpus: tuple[str, ...], code: int = 0) -> Path:
    """A machine with these GPUs, whose docker notes what it is asked for; `code` is that of the conversion."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    programs, log, out = tmp_path / "bin", tmp_path / "docker.log", tmp_path / "out"
    programs.mkdir()
    (tmp_path / "docker.log.engine").write_text(
        json.dumps({"version": "1.2.1", "build_config": {"max_batch_size": 64}})
    )
    smi = "#!/bin/sh\n" + "".join(f"echo '{each}'\n" for each in gpus)
    for name, text in (("nvidia-smi", smi), ("docker", DOCKER.format(log=log, out=out, code=code))):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return log


def call(tmp_path: Path, *arguments: str, profile: str = "70b-tp8") -> int:
    words = ["build-engine", profile, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    return main([*words, "--project", str(ROOT), *arguments], {}, [register_build_engine])


@pytest.mark.usefixtures("model")
def test_checkpoint_engine_repository_and_manifest_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, out = host(tmp_path, monkeypatch, gpus=(A100,) * 8), tmp_path / "out"
    assert call(tmp_path) == 0

    convert, build = log.read_text().splitlines()
    assert "convert_checkpoint.py" in convert
    assert "trtllm-build" in build
    assert f"-v {tmp_path}/model:/model:ro -v {out}:/out" in build
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["tensorrt_llm"], manifest["build_config"]) == ("1.2.1", {"max_batch_size": 64})
    assert manifest["image_digest"] == "nvcr.io/nvidia/tritonserver@sha256:abc"
    assert manifest["profile"]["name"] == "70b-tp8"
    assert [" ".join(each[1:]) for each in manifest["commands"]] == [convert, build]
    assert len(manifest["model_config_sha256"]) == 64
    assert {"text", "engine", "run.sh", "sidecar.yaml"} == {each.name for each in (out / "serving").iterdir()}


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("gpus", "told"),
    [
        ((A100,) * 4, "the profile needs 8 GPUs of SM 80 with 79.2 GiB (a100-80gb); this machine has 4"),
        (("8.0, 40960, NVIDIA A100-SXM4-40GB",) * 8, "this machine has 0: 8.0, 40960"),
        (("9.0, 81559, NVIDIA H100 80GB HBM3",) * 8, "this machine has 0: 9.0, 81559, NVIDIA H100"),
    ],
)
def test_a_machine_with_other_gpus_builds_nothing(
    gpus: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = host(tmp_path, monkeypatch, gpus=gpus)
    assert call(tmp_path) == 1
    assert told in capsys.readouterr().err
    assert not log.exists()


@pytest.mark.usefixtures("model")
def test_a_disk_that_cannot_hold_checkpoint_and_engine_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = host(tmp_path, monkeypatch, gpus=(A100,) * 8)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100 << 30))
    assert call(tmp_path) == 1
    assert "has 100 GiB free; checkpoint and engine take 263 GiB" in capsys.readouterr().err
    assert not log.exists()


@pytest.mark.usefixtures("model")
def test_nothing_follows_a_step_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = host(tmp_path, monkeypatch, gpus=(A100,) * 8, code=3)
    assert call(tmp_path) == 1
    assert "docker ended with code 3" in capsys.readouterr().err
    assert len(log.read_text().splitlines()) == 1
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.usefixtures("model")
def test_a_dry_run_needs_neither_gpu_nor_docker_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call(tmp_path, "--dry-run", "--inside") == 0
    script = capsys.readouterr().out
    assert "docker" not in script
    assert f"--checkpoint_dir {tmp_path}/out/ckpt" in script
    assert not (tmp_path / "out").exists()
    assert call(tmp_path) == 1
    assert "--dry-run prints the commands" in capsys.readouterr().err


@pytest.mark.usefixtures("model")
def test_what_was_built_elsewhere_is_finished_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, "--inside", "--finish") == 1
    assert "no engine was built" in capsys.readouterr().err
    (tmp_path / "out/engine").mkdir(parents=True)
    (tmp_path / "out/engine/config.json").write_text('{"version": "1.2.1"}')
    assert call(tmp_path, "--inside", "--finish") == 0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["image_digest"] is None


@pytest.mark.usefixtures("model")
def test_every_reason_against_a_build_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("backend: tensorrtllm\ntensor_parallel_size: 2\nmax_seq_len: 200000\ntriton: ['gpu:8001']\n")
    assert call(tmp_path, "--dry-run", profile=str(file)) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "beyond the 131072 positions" in told[0]
    assert "at least 4 are needed" in told[1]
