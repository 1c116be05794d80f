"""docs/reference.md says what the code says, and the code says something of everything."""

from __future__ import annotations

import re

import pytest

from dev import reference
from sidecar.settings.offline import OfflineSettings


def test_the_page_is_the_present_one() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run: scripts/reference"


def test_every_setting_metric_and_reason_has_a_meaning() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|.*\| *\|$", reference.page(), re.MULTILINE)
    assert rows == [], "say in a comment beside it what it is"


def test_a_name_that_nobody_explains_and_one_that_nobody_uses_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(reference.HEADERS, "x-job")
    monkeypatch.setitem(reference.HEADERS, "x-nobody", ("item", "nothing"))
    with pytest.raises(ValueError, match=r"without a meaning: \['x-job'\]; used nowhere: \['x-nobody'\]"):
        reference.page()


def test_a_metric_says_on_which_boards_and_rules_it_is() -> None:
    assert reference.seen_on("sidecar_offline_items") == ["jobs", "kafka", "rules"]
    assert reference.seen_on("sidecar_slots") == ["overview", "costs", "rules"]  # and not where sidecar_slots_in_use is
    assert reference.seen_on("sidecar_nothing") == []


def test_a_remark_above_a_member_and_one_beside_it_are_read() -> None:
    remarks = reference.comments(OfflineSettings)
    assert remarks["results_topic"] == "at least as many partitions as requests"
    assert remarks["__pydantic_config__"] == ""
