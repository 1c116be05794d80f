"""docs/wire.md: the table with its verdicts, made from the scenarios alone."""

from __future__ import annotations

from collections.abc import Iterator

from dev.triton import ROOT
from tests.integration.compare.runner import clients
from tests.integration.compare.scenario import Difference, Scenario, Subject
from tests.integration.compare.table import SUBJECTS

PATH = ROOT / "docs" / "wire.md"
_HEAD = """# Same twice: directly and through the sidecar

Each line is played against Triton 2.51 itself and through the sidecar, and everything that a caller can see is
compared: statuses and their texts, initial and trailing metadata, the number and order of the responses to each
request, ids, model names and versions, parameters, final flags, tensors with datatypes, shapes and values. `same`
means that a caller cannot tell the two apart. `differs` names a reason of the last table, and the parts in which it
differs; all others are the same. A difference that is not listed fails the test, and so does a listed one that is
gone.

Not compared is what differs between any two runs against one server: how the responses to different requests on a
stream interleave, how many tokens a request had said when it was stopped, times, what the KV cache held, and counts.
A scenario that contradicts its verdict is played again, up to four times in all: a difference comes back each time,
what two programs that run freely do to each other on a busy host does not.

Written by `python -m tests.integration.compare --write` from `tests/integration/compare/scenarios/`; played by
`tests/integration/test_compare.py`. Clients: grpc.aio, grpc-go (where Go is installed), and programs on top of
tritonclient 2.51 and 2.73.
"""


def document(subjects: tuple[Subject, ...] = SUBJECTS) -> str:
    """The whole page."""
    scenarios = [each for subject in subjects for each in subject.scenarios]
    different = sum(bool(each.differs) for each in scenarios)
    count = f"{len(scenarios)} scenarios: {len(scenarios) - different} same, {different} differ.\n"
    parts = [_HEAD, count, *(_subject(each) for each in subjects), _reasons(scenarios)]
    return "\n".join(parts)


def _subject(subject: Subject) -> str:
    rows = "\n".join(_row(each) for each in subject.scenarios)
    return f"## {subject.title}\n\n| scenario | clients | verdict |\n|---|---|---|\n{rows}\n"


def _row(scenario: Scenario) -> str:
    verdict = "same"
    if scenario.differs:
        verdict = "; ".join(f"differs: {each.name} ({', '.join(each.parts)})" for each in scenario.differs)
    return f"| {_cell(scenario.name)} | {', '.join(clients(scenario))} | {verdict} |"


def _reasons(scenarios: list[Scenario]) -> str:
    named = {each.name: each for each in _differences(scenarios)}
    rows = "\n".join(f"| {each.name} | {_cell(_reason(each))} |" for _, each in sorted(named.items()))
    return f"## Where it differs, and why\n\n| name | reason |\n|---|---|\n{rows}\n"


def _reason(difference: Difference) -> str:
    return f"to be mended: {difference.reason}" if difference.to_mend else difference.reason


def _differences(scenarios: list[Scenario]) -> Iterator[Difference]:
    for scenario in scenarios:
        yield from scenario.differs


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
