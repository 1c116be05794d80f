"""Each online request is judged once per objective: its own where it states one, and never for the caller's fault."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sidecar.call import Outcome, Timeline
from sidecar.core.events import RejectReason
from sidecar.core.request import Lane, Request
from sidecar.core.settings import SchedulerSettings
from sidecar.telemetry.slo_metrics import SLOS, DeadlineMetrics, SloMetrics

PROMISED = SchedulerSettings(ttft_objective_ms=500, e2e_objective_ms=4_000)
OK = Outcome(outcome="ok")


class Judged:
    """The metrics, and what they counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = SloMetrics(self.registry, ["m"], PROMISED)

    def of(self, timeline: Timeline, outcome: Outcome = OK, **request: Any) -> dict[str, str]:
        """The verdict per objective that one request gets; nothing where it says nothing."""
        before = self.counts()
        defaults: dict[str, Any] = {"lane": Lane.ONLINE, "model": "m", "arrived_s": 0.0}
        asked = Request(id="r", prompt_tokens=1, output_tokens_max=1, **(defaults | request))
        self.metrics.finished(asked, timeline, outcome)
        changed = {key for key, count in self.counts().items() if count != before[key]}
        assert len(changed) == len(dict(changed))  # never two verdicts of one objective
        return dict(changed)

    def counts(self) -> dict[tuple[str, str], float]:
        return {
            (slo, verdict): self.registry.get_sample_value(
                "sidecar_slo_events_total", {"model": "m", "slo": slo, "verdict": verdict}
            )
            or 0.0
            for slo in SLOS
            for verdict in ("good", "bad")
        }


def took(first_s: float | None, end_s: float | None) -> Timeline:
    return Timeline(arrived_s=0.0, first_token_s=first_s, finished_s=end_s)


@pytest.mark.parametrize(
    ("timeline", "verdicts"),
    [
        (took(0.5, 4.0), {"ttft": "good", "e2e": "good", "availability": "good"}),
        (took(0.501, 4.0), {"ttft": "bad", "e2e": "good", "availability": "good"}),
        (took(0.5, 4.001), {"ttft": "good", "e2e": "bad", "availability": "good"}),
        (took(None, 1.0), {"e2e": "good", "availability": "good"}),  # an answer without a token
        (took(0.1, None), {"ttft": "good", "availability": "good"}),
    ],
)
def test_a_request_is_good_up_to_its_objective_and_not_beyond(timeline: Timeline, verdicts: dict[str, str]) -> None:
    assert Judged().of(timeline) == verdicts


def test_a_requests_own_objective_wins_over_the_promised_one() -> None:
    assert Judged().of(took(0.2, 1.0), ttft_objective_ms=100.0)["ttft"] == "bad"
    assert Judged().of(took(0.9, 1.0), ttft_objective_ms=1_000.0)["ttft"] == "good"


def test_what_failed_was_not_available_and_its_end_is_no_answer() -> None:
    failed = Outcome(outcome="error", error_type="INTERNAL")
    assert Judged().of(took(0.2, 1.0), failed) == {"ttft": "good", "availability": "bad"}
    refused = Outcome(outcome="rejected", error_type=RejectReason.QUEUE_FULL)
    assert Judged().of(took(None, 1.0), refused) == {"availability": "bad"}


@pytest.mark.parametrize(
    ("outcome", "asked"),
    [
        (Outcome(outcome="cancelled"), {}),
        (Outcome(outcome="rejected", error_type=RejectReason.TOO_LARGE), {}),
        (Outcome(outcome="rejected", error_type=RejectReason.UNKNOWN_MODEL), {}),
        (OK, {"lane": Lane.OFFLINE}),
        (OK, {"model": "unheard of"}),
    ],
)
def test_what_the_caller_did_and_what_nobody_promised_says_nothing(outcome: Outcome, asked: dict[str, Any]) -> None:
    assert Judged().of(took(9.0, 99.0), outcome, **asked) == {}


def test_every_verdict_is_there_before_the_first_request_and_the_promises_are_told() -> None:
    judged = Judged()
    names = {sample.name for family in judged.registry.collect() for sample in family.samples}
    assert "sidecar_slo_events_total" in names
    samples = [
        sample
        for family in judged.registry.collect()
        for sample in family.samples
        if sample.name == "sidecar_slo_events_total"
    ]
    assert [sample.value for sample in samples] == [0.0] * 6
    targets = {slo: judged.registry.get_sample_value("sidecar_slo_target_seconds", {"slo": slo}) for slo in SLOS}
    assert targets == {"ttft": 0.5, "e2e": 4.0, "availability": None}


@pytest.mark.parametrize(
    ("deadline_s", "outcome", "end_s", "verdicts"),
    [
        (4.0, "ok", 4.0, {"met": 1.0}),
        (4.0, "ok", 4.1, {"missed": 1.0}),
        (4.0, "expired", 4.0, {"missed": 1.0}),
        (4.0, "error", 1.0, {"missed": 1.0}),
        (4.0, "ok", None, {"missed": 1.0}),
        (4.0, "cancelled", 1.0, {}),
        (float("inf"), "ok", 1.0, {}),
    ],
)
def test_a_deadline_is_met_or_missed_once(
    deadline_s: float, outcome: Any, end_s: float | None, verdicts: dict[str, float]
) -> None:
    registry = CollectorRegistry()
    asked = Request(
        id="r",
        lane=Lane.OFFLINE,
        model="m",
        arrived_s=0.0,
        prompt_tokens=1,
        output_tokens_max=1,
        deadline_s=deadline_s,
    )
    DeadlineMetrics(registry, ["m"]).finished(asked, took(0.5, end_s), Outcome(outcome=outcome))
    found = {
        verdict: registry.get_sample_value(
            "sidecar_deadlines_total", {"model": "m", "lane": "offline", "verdict": verdict}
        )
        for verdict in ("met", "missed")
    }
    assert {verdict: count for verdict, count in found.items() if count} == verdicts
