"""Every scenario of the table has its verdict: played directly and through the sidecar, on the real Triton."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.compare.runner import Outcome, clients, run
from tests.integration.compare.scenario import Scenario
from tests.integration.compare.table import SUBJECTS

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
CASES = [
    pytest.param(scenario, client, id=f"{subject.title}: {scenario.name}, {client}")
    for subject in SUBJECTS
    for scenario in subject.scenarios
    for client in clients(scenario)
]
Outcomes = dict[tuple[int, str], Outcome]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def outcomes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Outcomes]:
    """The whole table, played once."""
    scenarios = [scenario for subject in SUBJECTS for scenario in subject.scenarios]
    found = await run(scenarios, Path(tmp_path_factory.mktemp("compare")))
    yield {(id(each.scenario), each.client): each for each in found}


@pytest.mark.parametrize(("scenario", "client"), CASES)
async def test_a_caller_sees_the_same_through_the_sidecar(outcomes: Outcomes, scenario: Scenario, client: str) -> None:
    outcome = outcomes[id(scenario), client]
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert not outcome.wrong, "\n".join(outcome.wrong)
