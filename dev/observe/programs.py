"""The programs that watch a deployment: found on this machine, or built once with Go into .cache/observe.

Prometheus comes from the distribution. The collector is a `main.go` of ours over the collector's modules, and Jaeger is
a tool of a Go module: both are pinned by their go.sum, and built again only if that has changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from sidecar.core.errors import SidecarError

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "observe"
SOURCES = {"collector": ".", "jaeger": "github.com/jaegertracing/jaeger/cmd/jaeger"}  # what Go builds
BUILD_TIMEOUT_S = 1800  # of a first build on two busy cores


class MissingProgramError(SidecarError):
    """A program is not on this machine and cannot be made; the message says why."""


def find(name: str, *, build: bool = True) -> Path:
    """Return where the program is. With `build`, one of SOURCES is made first where it is not there yet."""
    if name not in SOURCES:
        if (found := shutil.which(name)) is None:
            raise MissingProgramError(f"{name} is not installed (Debian: apt-get install prometheus)")
        return Path(found)
    program, stamp, module = CACHE / name, CACHE / f"{name}.made", Path(__file__).parent / name
    made_of = checksum(module)
    if program.exists() and stamp.exists() and stamp.read_text() == made_of:
        return program
    if not build:
        raise MissingProgramError(f"{name} is not built yet: scripts/demo --observe builds it, in some minutes")
    if shutil.which("go") is None:
        raise MissingProgramError(f"{name} is built with Go, which is not installed")
    _build(SOURCES[name], program, module)
    stamp.write_text(made_of)
    return program


def checksum(module: Path) -> str:
    """Return what changes with the sources of a Go module, and with nothing else."""
    files = sorted(path for path in module.iterdir() if path.suffix in (".go", ".mod", ".sum"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _build(package: str, program: Path, module: Path) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    command = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(program), package]
    environment = {**os.environ, "GOFLAGS": "-mod=readonly"}
    try:
        done = subprocess.run(
            command, cwd=module, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise MissingProgramError(f"{program.name} was not built within {BUILD_TIMEOUT_S} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MissingProgramError(f"{program.name} could not be built: {last}")
