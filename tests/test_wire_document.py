"""docs/wire.md says what the table of scenarios says, and the table is sound."""

from __future__ import annotations

from collections import Counter

from tests.integration.compare.document import PATH, document
from tests.integration.compare.scenario import Difference
from tests.integration.compare.table import SUBJECTS

SCENARIOS = [scenario for subject in SUBJECTS for scenario in subject.scenarios]


def test_the_page_is_made_from_the_present_table() -> None:
    assert PATH.read_text() == document(), "run: python -m tests.integration.compare --write"


def test_the_table_has_at_least_120_scenarios_and_no_name_twice_within_a_subject() -> None:
    assert len(SCENARIOS) >= 120
    names = Counter((subject.title, scenario.name) for subject in SUBJECTS for scenario in subject.scenarios)
    assert [name for name, times in names.items() if times > 1] == []


def test_a_difference_has_one_reason_under_one_name() -> None:
    named: dict[str, set[str]] = {}
    for each in (each for scenario in SCENARIOS for each in scenario.differs):
        assert isinstance(each, Difference)
        assert each.parts
        named.setdefault(each.name, set()).add(each.reason)
    assert [name for name, reasons in named.items() if len(reasons) > 1] == []
