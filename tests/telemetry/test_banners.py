"""Whether all is well, and if not why, in a sentence."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from dev.page_scenes import scene
from sidecar.core.engine import Limit
from sidecar.offline.lane_state import Cause
from sidecar.telemetry.banners import LATE_MIN, WHAT_TO_DO, verdict, why_held


def busy(**changes: Any) -> dict[str, Any]:
    """A sidecar that is well, but for the changes."""
    document = deepcopy(scene("busy"))
    document["jobs"] = []
    return document | changes


def titles(document: dict[str, Any]) -> list[str]:
    return [each["title"] for each in verdict(document)["banners"]]


def test_a_sidecar_that_is_well_says_so_in_one_sentence_and_has_no_banner() -> None:
    found = verdict(busy())
    assert found["level"] == "ok"
    assert found["banners"] == []
    assert found["text"].startswith("All is well: 95 of 100 online answers begin within ")
    assert found["text"].endswith(" slots.")


def test_nobody_is_told_that_nothing_is_wrong_and_nothing_runs() -> None:
    assert verdict(scene("idle"))["text"] == "All is well, and nothing runs: nobody asks for anything."


def test_an_engine_that_is_down_is_named_with_its_reason_and_what_callers_get() -> None:
    found = verdict(scene("engine_down"))
    assert found["level"] == "bad"
    assert found["text"] == "Engine a100-0 has been down for 42 s."
    assert "connection refused" in found["banners"][0]["text"]
    assert "UNAVAILABLE" in found["banners"][0]["callers"]


def test_with_another_engine_of_the_model_it_is_a_warning() -> None:
    document = scene("engine_down")
    document["engines"]["other"] = document["engines"]["a100-0"] | {"up": True}
    found = verdict(document)
    assert found["level"] == "warn"
    assert found["banners"][0]["callers"] == "Other engines of the model serve them."


def test_the_advice_of_the_engine_watch_is_in_the_banner_once() -> None:
    document = scene("engine_down")
    document["engines"]["a100-0"]["faults"] = ["down: UNAVAILABLE: refused (is Triton up?)", "it has other slots"]
    first, second = verdict(document)["banners"]
    assert first["text"] == "UNAVAILABLE: refused (is Triton up?)"
    assert second["text"] == "it has other slots"


def test_an_overload_says_since_when_how_many_and_how_old_the_oldest_is() -> None:
    found = verdict(scene("overload"))
    assert found["text"].startswith("Overload for ")
    assert "were refused in the last minute" in found["banners"][0]["text"]
    assert "the oldest for" in found["banners"][0]["text"]
    assert "RESOURCE_EXHAUSTED" in found["banners"][0]["callers"]


def test_a_few_late_answers_are_no_news() -> None:
    recent = busy()["recent"] | {"began": LATE_MIN, "late": 1}
    assert titles(busy(recent=recent)) == []
    assert titles(busy(recent=recent | {"late": 2})) == ["Online is late: 10% of the first tokens miss their objective"]
    assert titles(busy(recent=recent | {"began": LATE_MIN - 1, "late": LATE_MIN - 1})) == []


@pytest.mark.parametrize("phase", ["stopped", "waiting", "degraded"])
def test_a_lane_that_does_not_run_says_why_since_when_and_what_to_do(phase: str) -> None:
    offline = busy()["offline"] | {"state": f"{phase}: no broker answers", "reason": "unreachable", "since_s": 90.0}
    [found] = verdict(busy(offline=offline))["banners"]
    assert "1 min 30 s" in found["title"]
    assert found["text"] == "no broker answers"
    assert found["act"].startswith("Start the brokers")
    assert "Online callers notice nothing" in found["callers"]


def test_a_lane_that_starts_is_mentioned_only_if_that_takes_long() -> None:
    offline = busy()["offline"] | {"state": "starting", "reason": "assignment", "since_s": 3.0}
    assert verdict(busy(offline=offline))["banners"] == []
    found = verdict(busy(offline=offline | {"since_s": 300.0}))
    assert [each["level"] for each in found["banners"]] == ["note"]
    assert found["level"] == "ok"


def test_every_cause_of_the_lane_has_something_to_do() -> None:
    assert WHAT_TO_DO.keys() == {each.value for each in Cause}


def test_every_limit_has_words() -> None:
    without = {Limit.NONE, Limit.NO_OFFLINE}
    assert {each for each in Limit if why_held(each) in ("", each.value)} == without


def test_the_worst_comes_first() -> None:
    document = scene("overload")
    document["state"] = "draining"
    levels = [each["level"] for each in verdict(document)["banners"]]
    assert levels == sorted(levels, key=["bad", "warn", "note"].index)
    assert len(levels) >= 2


def test_a_job_that_cannot_be_done_in_time_is_named() -> None:
    job = {"tenant": "t", "job": "weekly", "verdict": "infeasible", "deadline_in_s": 3600.0, "eta_p50_s": 7200.0}
    [found] = verdict(busy(jobs=[job]))["banners"]
    assert found["title"] == "Job weekly of t cannot be done in time"
    assert found["text"] == "It is due in 1 h, and done in about 2 h."


def test_a_document_of_an_older_sidecar_is_judged_by_what_it_has() -> None:
    document = busy()
    for name in ("recent", "objective", "history", "tenants", "decisions", "at"):
        del document[name]
    assert verdict(document)["level"] == "ok"
