"""The image: built in two stages from no more than the wheel needs, and run by nobody in particular."""

from __future__ import annotations

import re
from pathlib import Path

from sidecar import __version__

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


def copied() -> list[str]:
    """What the first stage takes from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_the_builder_is_sent_what_it_copies_and_nothing_else() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == set(copied())
    assert all((ROOT / source).exists() for source in copied())


def test_the_second_stage_takes_the_installation_alone_and_is_not_root() -> None:
    _, last = re.split(r"^FROM .*\n", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert re.findall(r"^COPY (.+)$", last, re.MULTILINE) == ["--from=build /opt/sidecar /opt/sidecar"]
    (user,) = re.findall(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    assert int(user[0]) > 0 < int(user[1])
    assert last.index("USER") < last.index("ENTRYPOINT")


def test_the_image_has_the_pinned_versions_and_is_named_after_this_one() -> None:
    assert "pip install --no-cache-dir -c constraints.txt ." in DOCKERFILE
    assert f"backfill-sidecar:{__version__} " in DOCKERFILE
