"""What delayed a request is named right: things are put into runs of the simulator, and looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.sim.causes import account, costs_of
from sidecar.sim.story import scan, told
from tests.sim.injected import CAUSES, TARGET, record, run_of


def main_cause(cause: str, seed: int, directory: Path) -> str | None:
    scanned = scan(record(run_of(cause, seed), directory))
    story = told(scanned, TARGET)
    found = account(story, scanned.settings, scanned.engines[0], costs_of(story))
    took_s = story.end_s - story.request.arrived_s
    assert sum(each.seconds for each in found.causes) <= took_s + 1e-6
    return found.main.kind if found.main else None


@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_that_was_put_in_is_named(cause: str, tmp_path: Path) -> None:
    assert main_cause(cause, 101, tmp_path) == cause


def test_where_nothing_delays_it_nothing_is_named(tmp_path: Path) -> None:
    assert main_cause("none", 101, tmp_path) is None
