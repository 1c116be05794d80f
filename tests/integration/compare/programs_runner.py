"""Runs the programs of `programs/` under a release of tritonclient, all of one release in one process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dev.triton import ROOT

NEWEST, OLDER = "2.73", "2.51"  # of our own environment, and of the Triton that the tests run
PYTHONS = {NEWEST: Path(sys.executable), OLDER: ROOT / ".cache" / f"tritonclient-{OLDER}" / "bin" / "python"}
TIMEOUT_S = 60.0


class ProgramsError(Exception):
    """The programs could not be run."""


async def run_programs(release: str, names: Sequence[str], target: str, word: str) -> dict[str, Any]:
    """What each program saw. Raises ProgramsError."""
    python = PYTHONS[release]
    if not python.exists():
        raise ProgramsError(f"no environment with tritonclient {release}; run scripts/setup")
    process = await asyncio.create_subprocess_exec(
        *(str(python), "-m", "tests.integration.compare.programs", target, word, *names),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, said = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise ProgramsError(f"tritonclient {release}: {said.decode(errors='replace')[-2000:]}")
    found: dict[str, Any] = json.loads(output)
    return found
