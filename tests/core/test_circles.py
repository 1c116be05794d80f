"""No file of the core imports, for type checks or at run time, a file that leads back to it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import sidecar.core

HERE = Path(sidecar.core.__file__).parent


def _imports(path: Path) -> set[str]:
    """The files of the core that `path` names anywhere, by their stems."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "sidecar.core":
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sidecar.core."):
            found.add(str(node.module).split(".")[2])
    return found


def test_the_files_of_the_core_can_be_read_one_after_the_other() -> None:
    graph = {path.stem: _imports(path) for path in HERE.glob("*.py")}
    assert len(graph["scheduler"]) > 10
    order = tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert order.index("tracked_request") < order.index("engine") < order.index("scheduler")
