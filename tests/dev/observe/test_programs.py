"""Programs are found or built once; what cannot be had is said, and breaks nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.observe import programs
from dev.observe.programs import MissingProgramError, checksum, find


def test_a_program_of_the_distribution_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingProgramError, match="prometheus is not installed"):
        find("prometheus")


def test_without_go_nothing_is_built_and_the_reason_is_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "CACHE", tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingProgramError, match="built with Go, which is not installed"):
        find("jaeger")


def test_a_program_is_taken_as_it_is_while_its_sources_are_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(programs, "CACHE", tmp_path)
    (tmp_path / "collector").write_text("built")
    (tmp_path / "collector.made").write_text(checksum(Path(programs.__file__).parent / "collector"))
    assert find("collector", build=False) == tmp_path / "collector"
    (tmp_path / "collector.made").write_text("of other sources")
    with pytest.raises(MissingProgramError, match="not built yet"):
        find("collector", build=False)


@pytest.mark.parametrize("name", programs.SOURCES)
def test_what_go_builds_is_pinned(name: str) -> None:
    module = Path(programs.__file__).parent / name
    assert (module / "go.sum").stat().st_size > 1000
    assert "go 1." in (module / "go.mod").read_text()


def test_every_part_of_the_collector_has_the_same_version() -> None:
    text = (Path(programs.__file__).parent / "collector" / "go.mod").read_text()
    direct = text.partition("require (")[2].partition(")")[0]
    versions = {line.split()[1] for line in direct.splitlines() if "otelcol" in line or "contrib" in line}
    assert versions == {"v0.161.0"}
