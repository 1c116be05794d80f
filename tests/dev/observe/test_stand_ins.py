"""What stands in for a GPU has the names that the boards ask for."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from dev.boards.query import FOREIGN
from dev.observe.stand_ins import DCGM, dcgm


def test_each_card_has_each_metric_of_the_boards() -> None:
    families = {family.name: family for family in text_string_to_metric_families(dcgm(1000.0))}
    assert {name for name in FOREIGN if name.startswith("DCGM")} <= families.keys() == DCGM.keys()
    for family in families.values():
        assert [sample.labels["gpu"] for sample in family.samples] == ["0", "1"]


def test_shares_stay_shares() -> None:
    for at_s in range(0, 200, 7):
        for family in text_string_to_metric_families(dcgm(float(at_s))):
            if "_PROF_" in family.name:
                assert all(0 <= sample.value <= 1 for sample in family.samples)
