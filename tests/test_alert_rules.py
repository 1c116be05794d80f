"""Every alert fires when it should, keeps quiet just below, and recovers; each leads to a page that says what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.boards.query import FOREIGN, OURS

ROOT = Path(__file__).parent.parent
DIRECTORY = ROOT / "deploy" / "prometheus"
RUNBOOKS = ROOT / "docs" / "runbooks"
FILES = (DIRECTORY / "rules.yml", DIRECTORY / "alerts.yml")
RULES = [rule for file in FILES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
HEADINGS = ["## What it means", "## What callers notice", "## Where to look", "## What to do"]
MODEL, TOPIC = 'model="m"', 'topic="t"'

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus); .ci/run installs it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One alert over two hours in steps of a minute.

    All is well for half an hour, `bad` for 50 minutes, and well again. `quiet` is what must not make it fire.
    """

    bad: dict[str, str]  # series with their values, in promtool's notation
    quiet: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)  # of the alert that fires
    fires_at: str = "75m"


def slo(slo: str, bad: str, good: str = "0+95x120") -> dict[str, str]:
    """Online requests that missed and met one objective."""
    events = f'sidecar_slo_events_total{{{MODEL}, slo="{slo}", verdict='
    return {f'{events}"bad"}}': bad, f'{events}"good"}}': good}


def added(seconds_per_minute: int) -> dict[str, str]:
    """What offline work added, beside 100 s per minute that online requests took."""
    return {
        f"sidecar_interference_seconds_sum{{{MODEL}}}": f"0+{seconds_per_minute}x120",
        'gen_ai_server_request_duration_seconds_sum{lane="online", gen_ai_request_model="m"}': "0+100x120",
    }


def phase(state: str, reason: str) -> str:
    """The name of the series of one state of the offline lane."""
    return f'sidecar_offline_state{{{TOPIC}, state="{state}", reason="{reason}"}}'


def ended(outcome: str) -> str:
    """The name of the series of one end of items."""
    return f'sidecar_offline_items_total{{{TOPIC}, outcome="{outcome}", reason=""}}'


WORSE = "0+0x30 30+30x50 1530+0x40"  # a counter that only grows for 50 minutes
ON_OFF, OFF_ON = "0x30 1x50 0x40", "1x30 0x50 1x40"
ENGINE = f'{MODEL}, engine="e"'
PLACE = 'job="sidecar", instance="i"'
PARTITION = f'{TOPIC}, partition="0"'
MOVING, STANDING = "0+1x30 30x50 31+1x40", "0+1x120"
OFFLINE_WAITS = f'sidecar_queue_depth{{{MODEL}, lane="offline"}}'
DISPATCHED = f'sidecar_dispatches_total{{{MODEL}, lane="offline", kind="backfill"}}'
READY = f'sidecar_engine_ready{{{MODEL}, server_address="h:1"}}'
RENT = f'sidecar_cost_usd_total{{{ENGINE}, lane="'
CASES = {
    "SidecarDown": Case(
        bad={f"up{{{PLACE}}}": OFF_ON},
        quiet={f"up{{{PLACE}}}": "1x120", 'up{job="triton"}': "0x120"},
        labels={"job": "sidecar", "instance": "i"},
    ),
    "EngineDown": Case(
        bad={READY: OFF_ON}, quiet={READY: "1x120"}, labels={"model": "m", "server_address": "h:1"}, fires_at="33m"
    ),
    "EngineHung": Case(
        bad={f"sidecar_engine_silence_seconds{{{ENGINE}}}": "2x30 61x50 0x40"},
        quiet={f"sidecar_engine_silence_seconds{{{ENGINE}}}": "59x120"},
        labels={"model": "m", "engine": "e"},
    ),
    "OnlineUnavailable": Case(
        bad=slo("availability", WORSE),
        quiet=slo("availability", "0+0.9x120"),
        labels={"model": "m", "slo": "availability"},
    ),
    "OnlineLateBecauseOfOffline": Case(
        bad=slo("ttft", WORSE) | added(20), quiet=slo("ttft", "0+20x120") | added(9), labels={"model": "m"}
    ),
    "OnlineLateForAnotherReason": Case(
        bad=slo("e2e", WORSE) | added(2), quiet=slo("e2e", "0+20x120") | added(20), labels={"model": "m"}
    ),
    "OfflineHeldTooLong": Case(
        bad={OFFLINE_WAITS: "5x120", DISPATCHED: MOVING, READY: "1x120"},
        quiet={OFFLINE_WAITS: "5x120", DISPATCHED: "0x120", READY: "0x120"},  # the engine is down: another alert's
        labels={"model": "m"},
    ),
    "ReservationBroken": Case(
        bad={f"sidecar_window_violations_total{{{ENGINE}}}": "0x40 1x80"},
        quiet={f"sidecar_window_violations_total{{{ENGINE}}}": "3x120"},
        labels={"model": "m", "engine": "e"},
        fires_at="42m",
    ),
    "DeadlineAtRisk": Case(
        bad={f'sidecar_job_at_risk{{{MODEL}, tenant="a", job_name="j"}}': ON_OFF},
        quiet={f'sidecar_job_at_risk{{{MODEL}, tenant="a", job_name="j"}}': "0x120"},
        labels={"model": "m", "tenant": "a", "job_name": "j"},
    ),
    "PartitionStuck": Case(
        bad={f"sidecar_kafka_lag{{{PARTITION}}}": "9x120", f"sidecar_kafka_watermark_offset{{{PARTITION}}}": MOVING},
        quiet={
            f"sidecar_kafka_lag{{{PARTITION}}}": "9x120",
            f"sidecar_kafka_watermark_offset{{{PARTITION}}}": STANDING,
        },
        labels={"topic": "t", "partition": "0"},
    ),
    "OfflineLaneStopped": Case(
        bad={phase("waiting", "rights"): "_x30 1x50 stale"},
        quiet={phase("running", "none"): "1x120", phase("draining", "none"): "1x120"},
        labels={"topic": "t", "state": "waiting", "reason": "rights"},
    ),
    "DeadLettersGrowing": Case(
        bad={ended("dlq"): "0x30 0+2x50 100x40", ended("done"): "0+98x120"},
        quiet={ended("dlq"): "0+1x120", ended("done"): "0+999x120"},
        labels={"topic": "t"},
    ),
    "SlotsMisset": Case(
        bad={
            f"sidecar_slots{{{ENGINE}}}": "64x30 128x50 64x40",
            'nv_trt_llm_request_metrics{request_type="max"}': "64x120",
        },
        quiet={f"sidecar_slots{{{ENGINE}}}": "64x120", 'nv_trt_llm_request_metrics{request_type="max"}': "64x120"},
    ),
    "ForeignLoad": Case(
        bad={f"sidecar_slots_foreign{{{ENGINE}}}": "0x30 3x50 0x40"},
        quiet={f"sidecar_slots_foreign{{{ENGINE}}}": "0x120"},
        labels={"model": "m", "engine": "e"},
    ),
    "IdleWhileItemsWait": Case(
        bad={
            f'{RENT}idle"}}': "0+9x70 630+0x50",
            f'{RENT}offline"}}': "0+1x70 70+9x50",
            f"sidecar_kafka_lag{{{PARTITION}}}": "9x120",
        },
        quiet={
            f'{RENT}idle"}}': "0+9x120",
            f'{RENT}offline"}}': "0+1x120",
            f"sidecar_kafka_lag{{{PARTITION}}}": "0x120",
        },
        labels={"model": "m"},
    ),
    "RelayBehind": Case(
        bad={f"sidecar_event_loop_lag_seconds{{{PLACE}}}": "0.01x30 0.7x50 0.01x40"},
        quiet={f"sidecar_event_loop_lag_seconds{{{PLACE}}}": "0.4x120"},
        labels={"job": "sidecar", "instance": "i"},
    ),
    "SpansDropped": Case(
        bad={f"sidecar_dropped_spans_total{{{PLACE}}}": WORSE},
        quiet={f"sidecar_dropped_spans_total{{{PLACE}}}": "8x120"},
        labels={"job": "sidecar", "instance": "i"},
    ),
    "DecisionsNotRecorded": Case(
        bad={f"sidecar_recorder_running{{{PLACE}}}": OFF_ON},
        quiet={f"sidecar_recorder_running{{{PLACE}}}": "1x120"},
        labels={"job": "sidecar", "instance": "i"},
    ),
}
UP = {f"up{{{PLACE}}}": "1x120"}


Expected = dict[str, list[dict[str, str]]]  # at which time the alert fires with which labels


def promtool(cases: dict[str, tuple[dict[str, str], Expected]], directory: Path) -> str:
    """Return what promtool says if an alert, given these series, does not fire as expected; "" if all do."""
    for file in FILES:
        shutil.copy(file, directory)
    document = {
        "rule_files": [file.name for file in FILES],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in (UP | series).items()],
                "promql_expr_test": [
                    {
                        "expr": f'ALERTS{{alertname="{alert}", alertstate="firing"}}',
                        "eval_time": at,
                        "exp_samples": [{"labels": _written(alert, labels), "value": 1} for labels in firing],
                    }
                    for at, firing in expected.items()
                ],
            }
            for alert, (series, expected) in cases.items()
        ],
    }
    file = directory / "test.yml"
    file.write_text(yaml.safe_dump(document))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _written(alert: str, labels: dict[str, str]) -> str:
    every = {"alertname": alert, "alertstate": "firing", "severity": ALERTS[alert]["labels"]["severity"], **labels}
    return "ALERTS{" + ", ".join(f'{name}="{value}"' for name, value in every.items()) + "}"


@needs_promtool
def test_each_alert_fires_when_it_should_and_recovers(tmp_path: Path) -> None:
    expected = {
        alert: (case.bad, Expected({"29m": [], case.fires_at: [case.labels], "118m": []}))
        for alert, case in CASES.items()
    }
    assert promtool(expected, tmp_path) == ""


@needs_promtool
def test_each_alert_keeps_quiet_just_below(tmp_path: Path) -> None:
    never = Expected({at: [] for at in ("29m", "75m", "118m")})
    assert promtool({alert: (case.quiet, never) for alert, case in CASES.items()}, tmp_path) == ""


@needs_promtool
@pytest.mark.parametrize("alert", ["EngineDown", "PartitionStuck"])
def test_a_case_that_expects_the_wrong_thing_fails(alert: str, tmp_path: Path) -> None:
    case = CASES[alert]
    assert alert in promtool({alert: (case.quiet, {"75m": [case.labels]})}, tmp_path)


@needs_promtool
def test_promtool_finds_no_fault_in_the_rules() -> None:
    command = ["promtool", "check", "rules", "--lint=all", "--lint-fatal", *map(str, FILES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == ALERTS.keys()


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_severity_and_a_page_that_says_what_to_do(alert: str) -> None:
    rule: dict[str, Any] = ALERTS[alert]
    assert rule["labels"]["severity"] in ("page", "ticket", "info")
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{alert}.md"
    text = (RUNBOOKS / f"{alert}.md").read_text()
    assert text.startswith(f"# {alert}\n")
    assert re.findall(r"^## .*$", text, re.MULTILINE) == HEADINGS
    for section in re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]:
        assert len(section.split()) >= 8, section


def test_every_page_is_of_an_alert() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"} == ALERTS.keys()


def test_rules_and_pages_name_only_metrics_that_are_there() -> None:
    known = OURS.keys() | FOREIGN.keys() | {label for labels in OURS.values() for label in labels}
    texts = [rule["expr"] for rule in RULES] + [path.read_text() for path in RUNBOOKS.glob("*.md")]
    for text in texts:
        for name in re.findall(r"(?<![:\w])(?:sidecar|gen_ai|messaging|rpc|nv|DCGM)_\w+(?![:\w])", text):
            assert name in known, name
        for name in re.findall(r"\b\w+:sidecar_\w+:\w+", text):
            assert name in RECORDED, name


@needs_promtool
def test_prometheus_takes_the_configuration_of_the_compose_profile() -> None:
    command = ["promtool", "check", "config", str(DIRECTORY / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed; .ci/run installs it")
def test_alertmanager_takes_its_configuration_and_sends_each_severity_its_way() -> None:
    file = str(DIRECTORY / "alertmanager.yml")
    for severity, receiver in (("page", "pages"), ("ticket", "tickets"), ("info", "nobody")):
        command = ["amtool", "config", "routes", "test", f"--config.file={file}", f"severity={severity}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, receiver), done.stderr
