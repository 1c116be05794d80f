"""The items of the scene: jobs, deadlines, and some that are bad."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import UTC, datetime

from dev.boards.write import BOARDS
from dev.observe.queries import Answer, Series
from dev.observe.scene import JOBS, items, without_data

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def test_each_job_has_its_part_of_the_items_with_tenant_and_deadline() -> None:
    found = [dict(headers) for _, _, headers in items(300, NOW)]
    jobs = Counter(each.get("x-job", b"").decode() for each in found)
    assert jobs == dict.fromkeys(JOBS, 100)
    assert {each["x-tenant"].decode() for each in found} == {"labs", "mail"}
    assert {"x-deadline" in each for each in found if each.get("x-job") == b"digest"} == {True}


def test_one_in_fifty_is_bad_and_the_same_seed_gives_the_same_items() -> None:
    values = [value for _, value, _ in items(200, NOW)]
    assert values == [value for _, value, _ in items(200, NOW)]
    bad = [number for number, value in enumerate(values) if value == b"{"]
    assert bad == [49, 99, 149, 199]
    assert json.loads(values[0])["max_tokens"] == 96


def test_a_query_without_a_number_is_named_and_nan_is_none() -> None:
    def answers(value: float) -> dict[str, dict[int, Answer]]:
        some = [Series(labels={}, points=((0.0, value),))]
        return {
            name: {
                panel["id"]: Answer(series=[some for _ in panel["targets"]], exemplars=[])
                for panel in make()["panels"]
                if "targets" in panel
            }
            for name, make in BOARDS.items()
        }

    assert without_data(answers(1.0)) == []
    assert "overview: Tokens: {{lane}}" in without_data(answers(math.nan))
