"""`sidecar init`: a directory gets the settings, the topics and the compose file to start from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar import data
from sidecar.core.errors import SettingsError

FILES = {"sidecar.yaml": "sidecar.example.yaml", "topics.yaml": "topics.yaml", "docker-compose.yml": "compose.yml"}
NEXT = """\
next:
  1. put the model's tokenizer.json, tokenizer_config.json and generation_config.json beside sidecar.yaml
  2. in sidecar.yaml, say where Triton and Kafka are, and how many slots are the sidecar's
  3. docker compose up    # Kafka, its topics and the sidecar, in front of the Triton of this host
  or, without containers, in that directory:
     sidecar topics create --config sidecar.yaml --topics topics.yaml
     sidecar doctor --config sidecar.yaml
     sidecar serve --config sidecar.yaml"""


def register_init(subparsers: Any) -> None:
    """Add `init`."""
    parser = subparsers.add_parser(
        "init",
        help="write settings, topics and a compose file to start from",
        description=f"Write {', '.join(FILES)} into a directory, each with comments on what to change."
        " Nothing is overwritten: if one of them is there, exit code 2 and nothing is written.",
    )
    parser.add_argument("directory", nargs="?", type=Path, default=Path(), metavar="DIR", help="made if it is missing")
    parser.set_defaults(run=_init)


def _init(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    del environment
    directory: Path = options.directory
    there = [directory / name for name in FILES if (directory / name).exists() or (directory / name).is_symlink()]
    if there:
        raise SettingsError("\n".join(f"{path} exists; nothing was written" for path in there))
    directory.mkdir(parents=True, exist_ok=True)
    for name, source in FILES.items():
        with (directory / name).open("x", encoding="utf-8") as file:  # somebody may have made it meanwhile
            file.write(data.read(source))
        print(f"wrote {directory / name}")
    print(NEXT)
    return 0
