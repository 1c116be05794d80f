"""The bench of the scheduler says what an event costs beside a loop that never changes, so that hosts compare."""

from __future__ import annotations

import json
import sys

import pytest

from dev.bench import scheduler
from dev.bench.scheduler import BareDriver, measure_reference


def test_the_items_are_those_of_so_many_jobs_and_tenants() -> None:
    jobs = BareDriver(300, jobs=7).scheduler.snapshot().jobs
    assert len({each.job for each in jobs}) == 7
    crowd = BareDriver(300, jobs=1, tenants=20).scheduler.snapshot().jobs
    assert len({each.tenant for each in crowd}) == 20


def test_a_round_of_the_reference_takes_a_time_that_does_not_depend_on_the_rounds() -> None:
    few, many = (min(measure_reference(rounds) for _ in range(5)) for rounds in (10_000, 50_000))
    assert few == pytest.approx(many, rel=0.5)


def test_each_case_has_its_cost_and_its_ratio_to_the_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scheduler, "CASES", {"100": (100, 0, 0), "3 jobs": (100, 3, 0)})
    monkeypatch.setattr(sys, "argv", ["scheduler", "--events", "300"])
    scheduler.main()
    found = json.loads(capsys.readouterr().out)
    for name in ("100", "3 jobs"):
        cost = found["us_per_event"][name]["mean"] / found["reference_us"]
        assert found["per_reference"][name] == pytest.approx(cost, rel=0.01)
