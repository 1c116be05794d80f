"""The profile `observe` of the compose file: what is mounted fits together, by name, port and address."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from dev.boards.write import DIRECTORY
from dev.observe.programs import ROOT as PROJECT

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
WATCHING = {name: each for name, each in SERVICES.items() if each.get("profiles") == ["observe"]}
PROVISIONING = DEPLOY / "grafana/provisioning"


def read(*parts: str) -> Any:
    return yaml.safe_load(DEPLOY.joinpath(*parts).read_text())


def test_the_profile_has_all_parts_of_the_pipeline() -> None:
    assert PROJECT == ROOT
    assert WATCHING.keys() == {"prometheus", "alertmanager", "collector", "tempo", "grafana"}


def test_nothing_but_grafana_and_prometheus_can_be_reached_and_those_from_this_host_only() -> None:
    published = [port for each in WATCHING.values() for port in each.get("ports", ())]
    assert sorted(published) == ["127.0.0.1:3000:3000", "127.0.0.1:9090:9090", "127.0.0.1:9093:9093"]


def test_prometheus_scrapes_the_services_of_every_profile() -> None:
    jobs = {each["job_name"]: each for each in read("prometheus", "prometheus.yml")["scrape_configs"]}
    for job in ("sidecar", "triton"):
        [names] = jobs[job]["dns_sd_configs"]
        assert set(names["names"]) == {name for name in SERVICES if name.startswith(f"{job}-")}
    assert jobs["dcgm"]["static_configs"] == [{"targets": ["dcgm:9400"]}]
    exported = read("otel", "collector.yaml")["exporters"]["prometheus"]["endpoint"]
    assert jobs["collector"]["static_configs"] == [{"targets": [f"collector:{exported.split(':')[1]}"]}]


def test_prometheus_reads_the_rules_and_tells_alertmanager() -> None:
    found = read("prometheus", "prometheus.yml")
    for file in found["rule_files"]:
        assert (DEPLOY / "prometheus" / file).exists()
    assert found["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": ["alertmanager:9093"]}]}]


def test_exemplars_are_kept_and_lead_to_the_trace_store_and_back() -> None:
    assert "--enable-feature=exemplar-storage" in SERVICES["prometheus"]["command"]
    sources = {each["uid"]: each for each in read("grafana/provisioning/datasources/sidecar.yaml")["datasources"]}
    [exemplars] = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert (exemplars["name"], exemplars["datasourceUid"]) == ("trace_id", "tempo")
    back = sources["tempo"]["jsonData"]["tracesToMetrics"]
    assert back["datasourceUid"] == "prometheus"
    assert all("{$$__tags}" in each["query"] for each in back["queries"])
    assert [sources[uid]["url"] for uid in ("prometheus", "tempo")] == ["http://prometheus:9090", "http://tempo:3200"]


def test_the_scrape_interval_is_the_one_that_grafana_reckons_with() -> None:
    sources = {each["uid"]: each for each in read("grafana/provisioning/datasources/sidecar.yaml")["datasources"]}
    scrape = read("prometheus", "prometheus.yml")["global"]["scrape_interval"]
    assert sources["prometheus"]["jsonData"]["timeInterval"] == scrape


def test_grafana_finds_the_boards_where_they_are_mounted() -> None:
    [provider] = read("grafana/provisioning/dashboards/sidecar.yaml")["providers"]
    mounted = {target: source for source, target, _ in (each.split(":") for each in SERVICES["grafana"]["volumes"])}
    assert ROOT / mounted[provider["options"]["path"]] == DIRECTORY
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert json.loads((DIRECTORY / Path(home).name).read_text())["uid"] == "sidecar-overview"
    assert provider["allowUiUpdates"] is False


def test_the_collector_sends_to_where_tempo_listens() -> None:
    listening = read("tempo", "tempo.yaml")["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    sent = read("otel", "collector.yaml")["exporters"]["otlp/traces"]["endpoint"]
    assert sent == f"tempo:{listening.split(':')[1]}"


def test_the_collector_of_compose_has_the_version_that_runs_in_the_tests() -> None:
    built = (ROOT / "dev/observe/collector/go.mod").read_text()
    version = re.search(r"collector/otelcol v([\d.]+)", built)
    assert version is not None
    assert version[1] in SERVICES["collector"]["image"]
