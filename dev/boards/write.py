"""Write deploy/grafana/*.json from the modules of this package (--check: say whether they are the present ones)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dev.boards.costs import costs
from dev.boards.engine import engine
from dev.boards.jobs import jobs
from dev.boards.kafka import kafka
from dev.boards.overview import overview

DIRECTORY = Path(__file__).parents[2] / "deploy" / "grafana" / "boards"
BOARDS: dict[str, Callable[[], dict[str, Any]]] = {
    "overview": overview,
    "costs": costs,
    "jobs": jobs,
    "kafka": kafka,
    "engine": engine,
}


def written() -> dict[Path, str]:
    """Return the text of each file."""
    return {DIRECTORY / f"{name}.json": json.dumps(make(), indent=1) + "\n" for name, make in BOARDS.items()}


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or say with --check which are not the present ones."""
    parser = argparse.ArgumentParser(prog="scripts/boards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is not the code's")
    check = parser.parse_args(arguments).check
    texts = written()
    old = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if check:
        for path in old:
            print(f"{path.name} is not the code's: run scripts/boards")
        return 1 if old else 0
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for path in old:
        path.write_text(texts[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
