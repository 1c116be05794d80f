"""Here runs what deploy/ says, but for addresses and pace."""

from __future__ import annotations

from pathlib import Path

import yaml

from dev.observe.configurations import Ports, Targets, collector, jaeger, prometheus
from dev.observe.programs import ROOT

PORTS = Ports(prometheus=1, otlp_grpc=2, otlp_http=3, span_metrics=4, jaeger_otlp=5, jaeger_http=6, jaeger_grpc=7)
DEPLOYED = yaml.safe_load((ROOT / "deploy/otel/collector.yaml").read_text())


def test_the_rules_and_alerts_of_deploy_run_here_too() -> None:
    files = [Path(file) for file in prometheus(Path("targets.yml"))["rule_files"]]
    assert [file.name for file in files] == ["rules.yml", "alerts.yml"]
    assert all(file.exists() for file in files)


def test_the_collector_has_the_pipelines_of_deploy_and_keeps_every_trace() -> None:
    found = collector(PORTS, Path("/x/traces.jsonl"))
    assert found["service"]["pipelines"].keys() == DEPLOYED["service"]["pipelines"].keys()
    [share] = [each for each in found["processors"]["tail_sampling"]["policies"] if each["type"] == "probabilistic"]
    assert share["probabilistic"]["sampling_percentage"] == 100
    assert found["service"]["pipelines"]["traces/kept"]["exporters"] == ["otlp/traces", "file"]


def test_errors_and_late_requests_are_kept_whatever_their_share() -> None:
    kinds = [each["type"] for each in DEPLOYED["processors"]["tail_sampling"]["policies"]]
    assert kinds == ["status_code", "boolean_attribute", "latency", "probabilistic"]


def test_spans_go_from_the_collector_to_jaeger() -> None:
    sent = collector(PORTS, Path("t"))["exporters"]["otlp/traces"]["endpoint"]
    assert jaeger(PORTS)["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"] == sent == "127.0.0.1:5"


def test_targets_are_written_as_prometheus_reads_them(tmp_path: Path) -> None:
    Targets(jobs={"sidecar": ["127.0.0.1:9"]}).write(tmp_path / "targets.yml")
    found = yaml.safe_load((tmp_path / "targets.yml").read_text())
    assert found == [{"targets": ["127.0.0.1:9"], "labels": {"job": "sidecar"}}]
    assert [path.name for path in tmp_path.iterdir()] == ["targets.yml"]
