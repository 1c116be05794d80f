"""`sidecar init` writes a set that the other commands take, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar import data
from sidecar.cli.init import FILES, register_init
from sidecar.cli.main import main
from sidecar.offline.topic_creation import names, topic_rules
from sidecar.settings.file import load_settings

TOKENIZER = Path(__file__).parents[2] / "model_repository/tokenizer/tokenizer.json"


def call(*arguments: str) -> int:
    return main(["init", *arguments], {}, [register_init])


def test_a_directory_that_is_missing_is_made_and_each_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "a" / "b"
    assert call(str(directory)) == 0
    assert {path.name: path.read_text() for path in directory.iterdir()} == {
        name: data.read(source) for name, source in FILES.items()
    }
    told = capsys.readouterr().out.splitlines()
    assert told[:4] == [*(f"wrote {directory / name}" for name in FILES), "next:"]


def test_without_a_directory_the_present_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call() == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES.keys()


def test_the_settings_are_taken_once_the_tokenizer_is_there_and_the_topics_describe_what_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call()
    Path("tokenizer.json").symlink_to(TOKENIZER)
    settings = load_settings(Path("sidecar.yaml"), {})
    assert settings.offline is not None
    assert set(names(settings.offline)) <= topic_rules(Path("topics.yaml").read_text(), "topics.yaml").topics.keys()


def test_what_is_there_is_named_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "topics.yaml").write_text("mine")
    (tmp_path / "sidecar.yaml").symlink_to(tmp_path / "nowhere")
    assert call(str(tmp_path)) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.splitlines()) == (
        "",
        [f"sidecar: {tmp_path / name} exists; nothing was written" for name in ("sidecar.yaml", "topics.yaml")],
    )
    assert {path.name for path in tmp_path.iterdir()} == {"topics.yaml", "sidecar.yaml"}
    assert (tmp_path / "topics.yaml").read_text() == "mine"


def test_a_file_where_the_directory_should_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert call(str(tmp_path / "file")) == 1
    assert capsys.readouterr().err == f"sidecar: {tmp_path / 'file'}: File exists\n"
