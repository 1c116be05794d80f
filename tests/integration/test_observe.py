"""Every query of every panel and every alert, on the real stack under load, with a real Prometheus and collector."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from dev.boards.query import OURS
from dev.observe.programs import ROOT, MissingProgramError, find
from dev.observe.queries import PrometheusClient
from dev.observe.scene import Scene, asked, played, without_data

SECONDS = 90.0
RULES = [
    rule
    for name in ("rules.yml", "alerts.yml")
    for group in yaml.safe_load((ROOT / "deploy/prometheus" / name).read_text())["groups"]
    for rule in group["rules"]
]
# What needs predictions: a busy host's iterations are too uneven for the model to be trusted within a minute.
PREDICTED = {
    *("costs: Added to a request: ", "costs: Share of a request: ", "costs: Slowest twentieth: "),
    *("costs: Mean time of an online request: alone", "costs: Mean time of an online request: added by offline"),
    *(f"costs: Added to online requests: p{share}" for share in (50, 95, 99)),
}
pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed; .ci/run installs it"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with played(Path(tmp_path_factory.mktemp("scene")), SECONDS) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(scene: Scene) -> AsyncIterator[PrometheusClient]:
    async with PrometheusClient(scene.pipeline.prometheus) as found:
        yield found


def needs(program: str) -> None:
    """Skip where Go has not built this program; it is not built for a test."""
    try:
        find(program, build=False)
    except MissingProgramError as error:
        pytest.skip(str(error))


async def test_every_query_of_every_panel_brings_data(scene: Scene, client: PrometheusClient) -> None:
    missing = set(without_data(await asked(scene, client)))
    assert missing - PREDICTED == set()
    if await client.instant("sidecar_online_alone_seconds", scene.ended_s):
        assert not missing >= PREDICTED  # a model that is trusted late leaves the panels of whole minutes empty


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
async def test_every_rule_is_evaluated_and_what_it_reads_is_there(
    rule: dict[str, Any], scene: Scene, client: PrometheusClient
) -> None:
    await client.instant(rule["expr"], scene.ended_s)
    for name in set(re.findall(r"\b[a-zA-Z_:]+\b", rule["expr"])) & OURS.keys():
        assert await client.instant(f"count({name})", scene.ended_s), name
    if "record" in rule and not rule["record"].startswith("tenant:"):  # that one is evaluated every five minutes
        assert await client.instant(rule["record"], scene.ended_s)


async def test_no_rule_fails_and_everything_is_scraped(client: PrometheusClient) -> None:
    groups = (await client.get("rules"))["groups"]
    assert {
        rule["name"]: rule["lastError"] for group in groups for rule in group["rules"] if rule["health"] == "err"
    } == {}
    targets = (await client.get("targets"))["activeTargets"]
    assert {each["labels"]["job"] for each in targets} >= {"sidecar", "triton", "dcgm"}
    assert {each["lastError"] for each in targets} == {""}


async def test_what_an_engine_costs_is_what_the_settings_say(scene: Scene, client: PrometheusClient) -> None:
    seconds = scene.ended_s - scene.began_s
    [spent] = await client.instant(f"sum(increase(sidecar_cost_usd_total[{seconds:.0f}s]))", scene.ended_s)
    assert spent.last == pytest.approx(2.0 * seconds / 3600, rel=0.15)  # dev.deployment.USD_PER_HOUR


async def test_an_exemplar_leads_to_the_trace_of_its_request_and_to_tritons_own_spans(
    scene: Scene, client: PrometheusClient
) -> None:
    needs("collector")
    exemplars = await client.exemplars("gen_ai_server_time_to_first_token_seconds_bucket", scene.began_s, scene.ended_s)
    services: dict[str, set[str]] = {}
    for line in scene.pipeline.traces.read_text().splitlines():
        for group in json.loads(line)["resourceSpans"]:
            attributes = {each["key"]: each["value"].get("stringValue") for each in group["resource"]["attributes"]}
            for spans in group["scopeSpans"]:
                for span in spans["spans"]:
                    services.setdefault(span["traceId"], set()).add(attributes["service.name"])
    found = [services[each.trace_id] for each in exemplars if each.trace_id in services]
    assert len(found) > len(exemplars) / 2  # the newest may not have reached the file yet
    assert {"sidecar", "triton-inference-server"} <= set.union(*found)


async def test_the_collector_makes_metrics_of_the_spans(scene: Scene, client: PrometheusClient) -> None:
    needs("collector")
    names = {
        each.labels["span_name"] for each in await client.instant("traces_span_metrics_calls_total", scene.ended_s)
    }
    assert {"wait_for_slot", "text_completion tensorrt_llm"} <= names


async def test_jaeger_has_the_traces_of_the_sidecar(scene: Scene) -> None:
    needs("jaeger")
    needs("collector")
    async with aiohttp.ClientSession() as session, session.get(f"{scene.pipeline.jaeger}/api/services") as answer:
        assert "sidecar" in (await answer.json())["data"]
