"""Rooms stand in their order: imports go strictly downward, pure rooms touch nothing, and nothing grows unseen."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What each room may import beside itself. Frontend and offline never see each other; openai reads what offline reads.
BELOW: dict[str, set[str]] = {
    "core": set(),
    "inflight": set(),
    "plan": set(),
    "sim": {"core", "inflight"},
    "errors": {"core"},
    "call": {"core"},
    "token_call": {"core", "call"},
    "settings": {"core"},
    "tls": {"core", "settings"},
    "telemetry": {"core", "call", "errors", "settings", "tls"},
    "triton": {"core", "call", "errors", "settings", "tls"},
    "driver": {"core", "call", "token_call", "errors", "settings", "tls", "triton", "telemetry"},
}
BELOW["keys"] = {"core", "call", "settings", "tls"}
BELOW["frontend"] = BELOW["driver"] | {"driver", "keys"}
BELOW["offline"] = BELOW["driver"]
BELOW["batch"] = BELOW["offline"] | {"offline"}
BELOW["client"] = BELOW["batch"] | {"batch"}
BELOW["openai"] = BELOW["frontend"] | {"offline", "batch"}
BELOW["lifecycle"] = BELOW["frontend"] | {"frontend", "offline"}
BELOW["reload"] = BELOW["driver"] | {"driver", "keys"}
BELOW["app"] = BELOW["frontend"] | {"frontend", "offline", "openai", "lifecycle", "reload"}
BELOW["cli"] = BELOW["app"] | {"app", "batch", "keys", "tls", "sim", "inflight", "plan", "data"}
BELOW["__main__"] = {"cli", "sim"}
BELOW["engine"] = {"inflight"}
PURE = ("core", "inflight", "plan")
IMPURE_STDLIB = {
    *("asyncio", "contextvars", "datetime", "http", "logging", "multiprocessing", "os", "pathlib", "queue", "random"),
    *("secrets", "select", "signal", "socket", "subprocess", "sys", "threading", "time", "urllib", "uuid"),
}
# Lines of each room as they stand; a room may grow by a twentieth before somebody has to say why here.
LINES = {
    "core": 6153,
    "inflight": 1135,
    "plan": 233,
    "sim": 5640,
    "settings": 816,
    "triton": 2022,
    "driver": 1790,
    "frontend": 3110,
    "offline": 6465,
    "openai": 753,
    "telemetry": 3531,
    "cli": 3743,
    "batch": 1226,
    "engine": 2567,
    "dev": 11286,  # 1,600 of them are the boards, 1,200 run and draw what they show
}
FILE_LINES_MAX, FUNCTION_LINES_MAX = 400, 50
# Modules without a test file of their own name. Whoever writes one strikes the module here; nobody adds one.
UNTESTED = {
    "dev.gpu": ["curve"],
    "engine": "torch_kernels torch_model torch_models".split(),
    "sidecar.core": (
        "aimd arrivals attribution engine errors events forecasts invariants limits prefill_pace prefixes "
        "request request_table served_model settings snapshot step tenant_queue window yield_limit"
    ).split(),
}
TESTS_PER_LINE_MIN = {"frontend": 0.9, "offline": 0.9, "triton": 0.9}  # lines of tests for a line of the room


@cache
def modules() -> dict[str, Path]:
    """Every module of the product and the workshop, by its dotted name."""
    found = {}
    for top in ("sidecar", "engine", "dev"):
        for path in sorted((ROOT / top).rglob("*.py")):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def room(module: str) -> str:
    """`core` for sidecar.core.lane_queue, `app` for sidecar.app, `engine` for engine.serving."""
    parts = module.split(".")
    return parts[1] if parts[0] == "sidecar" and len(parts) > 1 else parts[0]


@cache
def tree(path: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(path.read_text())


def imported(path: Path) -> Iterator[str]:
    """The full names of everything that a file imports, for type checking too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def ours() -> dict[str, set[str]]:
    """The modules of this project that each module imports."""
    known = modules()
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        names = {name if name in known else name.rpartition(".")[0] for name in imported(path)}
        found[module] = names & known.keys() - {"sidecar"}  # its version is everybody's
    return found


def test_imports_go_strictly_downward() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in ours().items()
        for other in others
        if room(module) not in ("dev", room(other)) and room(other) not in BELOW.get(room(module), set())
    ]
    assert wrong == []


@pytest.mark.parametrize("pure", PURE)
def test_a_pure_room_imports_nothing_that_waits_reads_a_clock_draws_or_logs(pure: str) -> None:
    for module, path in modules().items():
        for name in imported(path) if room(module) == pure else ():
            top = name.split(".")[0]
            assert top == "sidecar" or (top in sys.stdlib_module_names and top not in IMPURE_STDLIB), (
                f"{module}: {name}"
            )


def test_nothing_imports_itself_by_way_of_others() -> None:
    assert list(circles(ours())) == []


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """The groups of modules that reach each other: Tarjan's strongly connected components of two or more."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        order[module] = lowest[module] = len(order)
        path.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                yield from visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in path:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            group = path[path.index(module) :]
            del path[path.index(module) :]
            if len(group) > 1:
                yield group

    for module in graph:
        if module not in order:
            yield from visit(module)


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for module, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_room_outgrows_what_is_written_down() -> None:
    lines: defaultdict[str, int] = defaultdict(int)
    for module, path in modules().items():
        lines[room(module)] += len(path.read_text().splitlines())
    assert {name: lines[name] for name, bound in LINES.items() if lines[name] > bound * 1.05} == {}


def test_every_module_has_a_test_file_of_its_own_name() -> None:
    known = {f"{room_}.{name}" for room_, names in UNTESTED.items() for name in names}
    untested = set()
    for module, path in modules().items():
        *rooms, name = path.relative_to(ROOT).with_suffix("").parts
        file = ROOT.joinpath("tests", *rooms, f"test_{name}.py")
        if rooms[0] == "sidecar":
            file = ROOT.joinpath("tests", *rooms[1:], f"test_{name}.py")
        if not name.startswith("__") and not file.exists():  # __main__ is tested by cli/test_main.py
            untested.add(module)
    assert sorted(untested - known) == []


@pytest.mark.parametrize("tested", TESTS_PER_LINE_MIN)
def test_what_meets_callers_engines_and_kafka_has_about_as_many_lines_of_tests(tested: str) -> None:
    code, tests = (
        sum(len(path.read_text().splitlines()) for path in (ROOT / top / tested).rglob("*.py"))
        for top in ("sidecar", "tests")
    )
    assert tests / code >= TESTS_PER_LINE_MIN[tested]


def test_no_file_and_no_function_is_too_long_to_read() -> None:
    files = {module: len(path.read_text().splitlines()) for module, path in modules().items()}
    functions = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, path in modules().items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    }
    assert {name: lines for name, lines in files.items() if lines > FILE_LINES_MAX} == {}
    assert {name: lines for name, lines in functions.items() if lines > FUNCTION_LINES_MAX} == {}
