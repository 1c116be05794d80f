"""What the demo's deployment is made of: its settings are those of a real sidecar, and its addresses are said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.chats import ITERATION_S
from dev.deployment import Deployment, DeploymentShape, Kafka, addresses, settings, sidecar_settings
from dev.triton import Triton, TritonSettings
from sidecar.inflight.profile import profile_named
from sidecar.settings.file import load_settings

KAFKA = Kafka(
    bootstrap_servers="127.0.0.1:9",
    version="4",
    cluster_id="c",
    topics={"requests": "mine.in", "results": "mine.out", "dlq": "mine.dead"},
)


@pytest.fixture
def triton(tmp_path: Path) -> Triton:
    return Triton(tmp_path, TritonSettings(slots=16))


def test_a_chat_model_keeps_no_pace() -> None:
    assert (DeploymentShape().paced, DeploymentShape(model="smollm2").paced) == (True, False)
    assert DeploymentShape(model="smollm2").finished_per_s(10) == 8 / (10 * ITERATION_S)


def test_a_paced_engine_finishes_what_its_profile_allows() -> None:
    wide, narrow = DeploymentShape(slots=64), DeploymentShape(slots=8)
    assert narrow.finished_per_s(10) == 8 / (10 * profile_named(narrow.profile).iteration_s(8, 0))
    assert narrow.finished_per_s(10) < wide.finished_per_s(10) < 8 * narrow.finished_per_s(10)


def test_the_settings_of_the_demo_are_read_by_the_sidecar(triton: Triton, tmp_path: Path) -> None:
    document = settings(DeploymentShape(slots=16, yield_rows=3), triton, KAFKA, tmp_path)
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(document))
    found = load_settings(file, {})
    (engine,) = found.engines
    assert (engine.target, engine.slots, engine.yield_rows) == (triton.target, 16, 3)
    assert found.offline is not None
    assert (found.offline.results_topic, found.offline.dead_letter_topic) == ("mine.out", "mine.dead")
    assert document["recorder"]["directory"] == str(tmp_path / "decisions")


def test_what_is_not_usual_of_an_engine_replaces_what_is(triton: Triton) -> None:
    usual, other = sidecar_settings(triton, {}), sidecar_settings(triton, {"slots": 4, "name": "x"}, scheduler={})
    assert (usual["engines"][0]["slots"], other["engines"][0]["slots"]) == (16, 4)
    assert other["engines"][0]["target"] == triton.target
    assert "scheduler" in other
    assert len({usual["listen"], usual["http"], other["listen"], other["http"]}) == 4


def test_where_everything_is_is_said_with_an_example_for_each_role(triton: Triton, tmp_path: Path) -> None:
    class Server:
        listen, http = "127.0.0.1:5", "127.0.0.1:6"

    text = addresses_of(Server(), triton, tmp_path, "toy")
    for part in ("127.0.0.1:5", "http://127.0.0.1:6/metrics", triton.target, "-t mine.in", "-t mine.out"):
        assert part in text
    assert "sidecar chat" not in text, "the toy's words mean nothing"
    assert "sidecar chat" in addresses_of(Server(), triton, tmp_path, "smollm2")


def addresses_of(server: Any, triton: Triton, directory: Path, model: str) -> str:
    deployment = Deployment(kafka=KAFKA, triton=triton, server=server)
    return addresses(deployment, DeploymentShape(model=model), directory)
