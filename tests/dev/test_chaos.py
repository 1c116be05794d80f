"""What chaos draws before it breaks anything: each fault at least once, and with a break the revealing ones alone."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from dev.broker import ROOT
from dev.chaos import PARTITIONS, REVEALING, ChaosOptions, schedule, scratch_copy
from dev.chaos_faults import GROWING, PARTITIONS_MAX

KINDS = ["kill9", "sigstop", "rebalance", "rights", *GROWING]


@pytest.mark.parametrize("seed", range(5))
def test_each_fault_comes_at_least_once_and_the_number_is_as_asked(seed: int) -> None:
    drawn = schedule(KINDS, ChaosOptions(faults=20, seed=seed), Random(seed))
    assert set(drawn) == set(KINDS)
    assert len(drawn) == 20
    assert drawn == schedule(KINDS, ChaosOptions(faults=20, seed=seed), Random(seed))


def test_fewer_faults_than_kinds_are_all_different() -> None:
    drawn = schedule(KINDS, ChaosOptions(faults=3, seed=1), Random(1))
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("seed", range(20))
def test_partitions_are_added_only_as_long_as_there_is_room(seed: int) -> None:
    drawn = schedule(["kill9", *GROWING], ChaosOptions(faults=60, seed=seed), Random(seed))
    assert sum(each in GROWING for each in drawn) <= PARTITIONS_MAX - PARTITIONS


@pytest.mark.parametrize("broken", REVEALING)
def test_a_break_is_met_by_what_reveals_it_alone_and_has_its_patch(broken: str, tmp_path: Path) -> None:
    drawn = schedule(KINDS, ChaosOptions(faults=12, seed=1, broken=broken), Random(1))
    assert set(drawn) <= set(REVEALING[broken])
    scratch_copy(tmp_path, broken)
    changed = [
        path.relative_to(tmp_path)
        for path in (tmp_path / "sidecar").rglob("*.py")
        if path.read_text() != (ROOT / path.relative_to(tmp_path)).read_text()
    ]
    assert len(changed) >= 1
