"""What every bench says beside its figures, and where figures are written."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np


def ran_on() -> dict[str, Any]:
    """Versions, cores, and how busy the machine was: a figure of a busy machine is a figure of that machine."""
    model = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "default"),
        "processor": model[0] if model else platform.machine(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }


def write(figures: dict[str, Any], target: str | None) -> None:
    """The figures as JSON in the file `target`; on standard output if it is "-" or None."""
    text = json.dumps(figures, indent=2) + "\n"
    if target and target != "-":
        Path(target).write_text(text)
    else:
        sys.stdout.write(text)


def one_blas_thread() -> None:
    """Run this program with one BLAS thread, as the engine runs in Triton; numpy reads the variable when it loads."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", _module_name(), *sys.argv[1:]])


def _module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    assert spec is not None
    return spec.name


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
