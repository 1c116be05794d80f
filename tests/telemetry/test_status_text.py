"""The status in words: jobs in human times, unknown as unknown, foreign names without effect."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from sidecar.telemetry.page import DOCUMENT, page
from sidecar.telemetry.status_text import status_text
from sidecar.telemetry.wording import duration

JOB = {
    "model": "tensorrt_llm",
    "tenant": "labels",
    "job": "nightly",
    "items": 40,
    "done": 120,
    "failed": 3,
    "verdict": "at risk",
    "deadline_in_s": 38_580.0,
    "eta_p50_s": 40.2,
    "eta_p90_s": 130.0,
}
PARTITION = {"partition": 0, "watermark": 5, "gaps": 1, "end": 9, "in_flight": 2, "finished": 0}


def document(**parts: Any) -> dict[str, Any]:
    return {"version": "test", "state": "serving", "in_flight": 0, "engines": {}, "lanes": [], "jobs": [], **parts}


def job_line(**changes: Any) -> str:
    return status_text(document(jobs=[{**JOB, **changes}])).splitlines()[1]


def test_jobs_that_are_too_many_to_tell_apart_are_told_together() -> None:
    line = job_line(tenant="", job="", deadline_in_s=None, eta_p50_s=None, eta_p90_s=None, verdict="unknown")
    assert line == "further jobs, too many to tell apart: 40 items here; nothing is forecast for them"


def test_a_job_is_told_in_human_times() -> None:
    assert job_line() == (
        "job nightly of labels: 120 done and 3 failed since the start, 40 here;"
        " due in 10 h 43 min, done in about 40 s, at most 2 min 10 s in nine cases of ten, at risk"
    )


def test_what_is_not_known_of_a_job_is_said_and_not_guessed() -> None:
    unknown = {"done": None, "failed": None, "eta_p50_s": None, "eta_p90_s": None, "verdict": "unknown"}
    assert job_line(**unknown) == "job nightly of labels: 40 here; due in 10 h 43 min, end not known yet"
    assert job_line(eta_p90_s=None, deadline_in_s=None, verdict="no deadline", done=0, failed=0) == (
        "job nightly of labels: 0 done and 0 failed since the start, 40 here; no deadline, done in about 40 s"
    )


def test_a_deadline_that_has_passed_is_in_the_past() -> None:
    assert "was due 5 min ago, done in about 40 s" in job_line(deadline_in_s=-300.0)


def test_a_partition_that_stands_still_shows_no_lag_of_zero() -> None:
    still = {**PARTITION, "end": None, "watermark": None, "gaps": None, "state": "waiting: no right to read"}
    offline = {"topic": "items", "state": "degraded", "stats": {"items": []}, "partitions": [PARTITION, still]}
    assert status_text(document(offline=offline)).splitlines()[1:5] == [
        "items from items: degraded",
        "  committed: none yet",
        "  partition 0: watermark 5, gaps 1, lag 4, in flight 2",
        "  partition 0: watermark not known, gaps not known, lag not known, in flight 2; waiting: no right to read",
    ]


def test_what_is_wrong_with_an_engine_stands_below_it() -> None:
    engine: dict[str, Any] = {
        "model": "tensorrt_llm",
        "up": False,
        "foreign_slots": 0,
        "slots": 2,
        "slots_free": 2,
        "dispatches": {},
        **dict.fromkeys(("slots_online", "slots_offline", "slots_draining", "contended", "offline_of_contended"), 0),
        **dict.fromkeys(("reserved_due", "reserved_taken", "reserved_lapsed"), 0),
        "worst_window_share": None,
        "limit_binding": "down",
        "faults": ["down: nothing listens there"],
        "attribution": {"ttft_share": 0.04, "itl_share": 0.1, "alone_ms": 200.0, "added_ms": 13.0},
    }
    assert status_text(document(engines={"e0": engine})).splitlines()[1:3] == [
        "engine e0 (tensorrt_llm) is DOWN: [..] of 2 slots",
        "  down: nothing listens there",
    ]
    for others, told in ((None, ", others' load not known"), (3, ", 3 used by others")):
        (line,) = status_text(document(engines={"e0": {**engine, "foreign_slots": others}})).splitlines()[1:2]
        assert line == f"engine e0 (tensorrt_llm) is DOWN: [..] of 2 slots{told}"


def test_a_lane_that_has_not_begun_is_told_as_that() -> None:
    assert status_text(document(offline={"state": "starting"})).splitlines()[1] == "items from Kafka: starting"


def test_a_recorder_that_stopped_says_why() -> None:
    recorder = {"state": "stopped: No space left on device", "dropped": 7}
    assert "recorder: stopped: No space left on device, 7 decisions are in no file" in status_text(
        document(recorder=recorder)
    )


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "\u202eevil", "\udcff", "x" * 5000])
def test_a_name_has_no_effect_on_a_terminal(name: str) -> None:
    line = job_line(job=name, tenant=name)
    assert line.isprintable()
    assert len(line) < 400


def test_a_name_is_text_on_the_page_whatever_it_holds() -> None:
    names = "<script>alert(1)</script>", "@TEXT@", "@STATE@", "a\nb", "\udcff", "'\""
    shown = page(document(state="@TEXT@", jobs=[{**JOB, "job": name, "tenant": name} for name in names]))

    assert "<script>alert" not in shown
    assert shown.count("<h1 ") == 1
    assert 'aria-live="polite">@TEXT@</h1>' in shown
    shown.encode()


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's script")
def test_the_page_tells_durations_as_the_text_does() -> None:
    seconds = [0, 0.4, 0.5, 40, 59.4, 59.6, 61, 725, 3555, 3599, 38_580, 86_399, 277_200, 8_640_000]
    script = DOCUMENT.split("<script>")[1].split("</script>")[0]
    function = script[script.index("function duration") : script.index("function clock")]
    done = subprocess.run(
        ["node", "-e", f"{function} console.log(JSON.stringify({seconds}.map(duration)))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [duration(each) for each in seconds]
