"""Play the scene and draw every board into docs/pictures."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from dev.boards.write import BOARDS
from dev.interrupt import run_until_told
from dev.observe.draw import drawn
from dev.observe.programs import ROOT
from dev.observe.queries import PrometheusClient
from dev.observe.scene import Answers, Scene, asked, played, without_data

DIRECTORY = ROOT / "docs" / "pictures"
POINTS = 100  # of each line


def draw(scene: Scene, answers: dict[str, Answers], directory: Path) -> list[Path]:
    """Write one picture per board."""
    files = []
    for name, make in BOARDS.items():
        file = directory / f"board-{name}.svg"
        file.write_text(drawn(make(), answers[name], scene.began_s, scene.ended_s))
        files.append(file)
    return files


async def played_and_drawn(seconds: float, directory: Path) -> list[str]:
    """Return the queries that brought nothing; the others are on the pictures."""
    async with played(Path(tempfile.mkdtemp(prefix="sidecar-scene-")), seconds) as scene:
        async with PrometheusClient(scene.pipeline.prometheus) as client:
            answers = await asked(scene, client, step_s=seconds / POINTS)
        await asyncio.to_thread(draw, scene, answers, directory)
    return without_data(answers)


def main(arguments: list[str] | None = None) -> int:
    """Say which queries brought nothing; exit code 1 if there is one."""
    parser = argparse.ArgumentParser(prog="python -m dev.observe.pictures", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long the scene takes (%(default)s)")
    parser.add_argument("--out", type=Path, default=DIRECTORY, help="where the pictures go (%(default)s)")
    options = parser.parse_args(arguments)
    missing = run_until_told(played_and_drawn(options.seconds, options.out))
    for each in missing:
        print(f"no data: {each}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
