"""`sidecar reload`: it signals the sidecar that is meant, and nobody else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from sidecar.cli import reload as module
from sidecar.cli.main import main
from sidecar.cli.reload import register_reload, serving


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    monkeypatch.setattr(module, "PROCESSES", tmp_path / "proc")
    (tmp_path / "proc").mkdir()
    (tmp_path / "sidecar.yaml").write_text("engines: [{name: e0}]\n")
    return found


def process(tmp_path: Path, pid: int, *words: str) -> None:
    made = tmp_path / "proc" / str(pid)
    made.mkdir()
    (made / "cmdline").write_bytes("\0".join([*words, ""]).encode())
    (made / "cwd").symlink_to(tmp_path)


def ran(tmp_path: Path, *options: str) -> int:
    return main(("reload", "--config", str(tmp_path / "sidecar.yaml"), *options), {}, (register_reload,))


def test_the_sidecar_that_serves_with_this_file_is_meant(tmp_path: Path, sent: list[tuple[int, int]]) -> None:
    process(tmp_path, 7, "python", "-m", "sidecar", "serve", "--config", "other.yaml")
    process(tmp_path, 8, "/usr/bin/python", "/opt/bin/sidecar", "serve", "--config=sidecar.yaml")
    process(tmp_path, 9, "vi", "sidecar.yaml")
    process(tmp_path, 10, "python", "/x/sidecar/__main__.py", "chat", "--config", "sidecar.yaml")
    (tmp_path / "proc" / "11").mkdir()  # it has ended
    assert sorted(serving(tmp_path / "sidecar.yaml")) == [(7, False), (8, True)]
    assert ran(tmp_path) == 0
    assert ran(tmp_path, "--pid", "7") == 0
    assert sent == [(8, signal.SIGHUP), (7, signal.SIGHUP)]


def test_nobody_is_signalled_where_it_is_not_clear_who_or_who_would_die_of_it(
    tmp_path: Path, sent: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(tmp_path) == 1
    assert "no sidecars serve with" in capsys.readouterr().err
    for pid in (7, 8):
        process(tmp_path, pid, "python", "-m", "sidecar", "serve", "--config", "sidecar.yaml")
    process(tmp_path, 9, "bash")
    assert ran(tmp_path) == 1
    assert "2 sidecars serve with" in capsys.readouterr().err
    assert ran(tmp_path, "--pid", "9") == 2
    assert "--pid 9 is no `sidecar serve`" in capsys.readouterr().err
    assert sent == []


def test_a_mistake_in_the_settings_or_the_keys_is_told_and_nothing_is_sent(
    tmp_path: Path, sent: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    process(tmp_path, 7, "python", "-m", "sidecar", "serve", "--config", "sidecar.yaml")
    (tmp_path / "keys.yaml").write_text("- {tenant: t}\n")
    (tmp_path / "sidecar.yaml").write_text(f"engines: [{{name: e0}}]\nkeys: {{file: {tmp_path / 'keys.yaml'}}}\n")
    assert ran(tmp_path) == 2
    assert "it needs either key or certificate" in capsys.readouterr().err
    assert sent == []
