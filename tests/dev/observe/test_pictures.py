"""One picture per board, under the name that the documents use."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from dev.boards.write import BOARDS
from dev.observe.pictures import DIRECTORY, draw
from dev.observe.queries import Answer
from dev.observe.scene import Scene


class Moment:
    began_s, ended_s = 0.0, 60.0


def test_each_board_becomes_a_picture(tmp_path: Path) -> None:
    answers = {
        name: {
            panel["id"]: Answer(series=[[] for _ in panel["targets"]], exemplars=[])
            for panel in make()["panels"]
            if "targets" in panel
        }
        for name, make in BOARDS.items()
    }
    files = draw(cast(Scene, Moment()), answers, tmp_path)
    assert [file.name for file in files] == [f"board-{name}.svg" for name in BOARDS]
    assert all(file.read_text().startswith("<svg") for file in files)


def test_the_documents_show_each_picture() -> None:
    text = (DIRECTORY.parent / "dashboards.md").read_text()
    for name in BOARDS:
        assert f"pictures/board-{name}.svg" in text
        assert (DIRECTORY / f"board-{name}.svg").exists()
