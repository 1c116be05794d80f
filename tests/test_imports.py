"""Imports go strictly downward, and the pure parts import nothing that waits, reads a clock, draws or logs."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = [
    *(ROOT / "sidecar/core").glob("*.py"),
    *(ROOT / "engine" / f"{name}.py" for name in ("batcher", "blocks", "profile")),
]
IMPURE_STDLIB = {
    *("asyncio", "contextvars", "datetime", "http", "logging", "multiprocessing", "os", "pathlib", "queue", "random"),
    *("secrets", "select", "signal", "socket", "subprocess", "sys", "threading", "time", "urllib", "uuid"),
}
# Each part may import itself and the parts named here; `local` and `bench` sit on top and may import everything.
ALLOWED = {
    "sidecar.core": set(),
    "sidecar.lab": {"sidecar.core"},
    "sidecar.edge": {"sidecar.core"},
    "engine": set(),
}
LAB_MAY_USE = {"engine.batcher", "engine.blocks", "engine.profile"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", [path for path in PURE if path.exists()], ids=lambda path: str(path.relative_to(ROOT)))
def test_pure_files_import_only_pure_things(path: Path) -> None:
    package = "sidecar.core" if path.is_relative_to(ROOT / "sidecar") else "engine"
    for name in imported(path):
        top = name.split(".")[0]
        if top in {"sidecar", "engine"}:
            assert name.startswith(package), f"{path} imports {name}"
        else:
            assert top in sys.stdlib_module_names, f"{path} imports {name}"
            assert top not in IMPURE_STDLIB, f"{path} imports {name}"


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_strictly_downward(part: str) -> None:
    for path in (ROOT / part.replace(".", "/")).rglob("*.py"):
        for name in imported(path):
            if name.split(".")[0] not in {"sidecar", "engine"} or name.startswith("sidecar.__version__"):
                continue
            allowed = {part, *ALLOWED[part], *(LAB_MAY_USE if part == "sidecar.lab" else ())}
            assert any(name == each or name.startswith(f"{each}.") for each in allowed), f"{path} imports {name}"
