"""Each GPU profile of docker-compose.yml starts the ranks that its engine has, on paths that are there, and drains.

The commands of the file are carried out as far as a machine without a GPU can: `fill` runs, and its output is read.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.__main__ import COMMANDS
from sidecar.cli.fill import register_fill
from sidecar.cli.main import main
from sidecar.cli.serving_profile import ServingProfile, load_profile
from sidecar.settings.file import ServeSettings, load_settings
from tests.cli.test_fill import parameters
from tests.cli.test_launch import processes

ROOT = Path(__file__).parent.parent
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PROFILES = ("tp8", "tp4x2", "tp1", "llmapi")
COUNTERS = ("DCGM_FI_PROF_SM_ACTIVE", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "DCGM_FI_PROF_DRAM_ACTIVE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The services of one profile, and what its `fill` wrote."""

    fill: dict[str, Any]
    tritons: dict[str, dict[str, Any]]
    sidecar: dict[str, Any]
    serving: Path
    wanted: ServingProfile

    @property
    def settings(self) -> ServeSettings:
        tokenizer = str(ROOT / "model_repository/tokenizer")
        return load_settings(self.serving / "sidecar.yaml", {"SIDECAR__TOKENIZER": tokenizer})


@pytest.fixture(params=PROFILES)
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    found = {name: each for name, each in SERVICES.items() if request.param in each.get("profiles", ())}
    (fill,) = (each for name, each in found.items() if name.startswith("fill"))
    (sidecar,) = (each for name, each in found.items() if name.startswith("sidecar"))
    parser = argparse.ArgumentParser()
    register_fill(parser.add_subparsers())
    options = parser.parse_args(fill["command"])
    assert mounts(fill)[str(options.out)][1] == "rw"
    assert str(options.settings) in mounts(fill)
    base = ROOT / re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", mounts(fill)[str(options.settings)][0])
    here = {"--out": tmp_path / "serving", "--settings": base, "--project": ROOT}
    words = list(fill["command"])
    for option, value in here.items():
        words[words.index(option) + 1] = str(value)
    assert main(words, {}, COMMANDS) == 0
    return Deployment(
        fill=fill,
        tritons={name: each for name, each in found.items() if name.startswith("triton")},
        sidecar=sidecar,
        serving=tmp_path / "serving",
        wanted=load_profile(options.profile, ROOT),
    )


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """By path in the container: what is mounted there, and whether it may be written."""
    parts = [re.fullmatch(r"(.+?):(/[^:]*)(?::(r[ow]))?", each) for each in service["volumes"]]
    return {each[2]: (each[1], each[3] or "rw") for each in parts if each is not None}


def devices(service: dict[str, Any]) -> list[str]:
    (found,) = service["deploy"]["resources"]["reservations"]["devices"]
    return list(found["device_ids"])


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_there_is_one_rank_for_each_card_and_as_many_as_the_engine_has(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    started = processes((deployment.serving / "run.sh").read_text(), tmp_path / "ranks")
    tp = deployment.wanted.tensor_parallel_size
    assert len(started) == (1 if deployment.wanted.backend == "llmapi" else tp)
    cards = [devices(each) for each in deployment.tritons.values()]
    assert [len(each) for each in cards] == [tp] * len(cards)
    assert len({card for each in cards for card in each}) == tp * len(cards), "two engines share a card"
    for each in deployment.tritons.values():
        assert each["command"] == ["bash", "/serving/run.sh"]


def test_nothing_that_is_served_is_a_template_and_every_path_in_it_is_mounted(deployment: Deployment) -> None:
    configs = list(deployment.serving.rglob("config.pbtxt"))
    assert len(configs) == 4
    assert [each for each in configs if "${" in each.read_text()] == []
    paths = {value for each in configs for value in parameters(each.parent).values() if value.startswith("/")}
    assert paths == {"/engine", "/tokenizer"}
    settings = yaml.safe_load((deployment.serving / "sidecar.yaml").read_text())
    for service in (*deployment.tritons.values(), deployment.sidecar):
        found = mounts(service)
        assert {*paths, settings["tokenizer"], "/serving"} <= found.keys()
        assert {mode for _, mode in found.values()} == {"ro"}


def test_triton_and_the_sidecar_see_the_same_at_the_same_path(deployment: Deployment) -> None:
    for each in deployment.tritons.values():
        assert mounts(each) == mounts(deployment.sidecar)
    assert mounts(deployment.fill)["/serving"][0] == mounts(deployment.sidecar)["/serving"][0]
    assert deployment.sidecar["working_dir"] == "/serving"


def test_the_engines_of_the_settings_are_the_services_that_are_started(deployment: Deployment) -> None:
    hosts = [each.target.split(":")[0] for each in deployment.settings.engines]
    assert hosts == list(deployment.tritons)
    for each in deployment.settings.engines:
        assert (each.slots, each.tokens_max) == (deployment.wanted.max_batch_size, deployment.wanted.max_seq_len)


def test_the_sidecar_drains_before_triton_is_told_to_stop(deployment: Deployment) -> None:
    """Compose stops who depends on others first, and kills who takes longer than its grace period."""
    assert set(deployment.tritons) <= deployment.sidecar["depends_on"].keys()
    assert seconds(deployment.sidecar["stop_grace_period"]) > deployment.settings.drain_timeout_s
    for each in deployment.tritons.values():
        assert seconds(each["stop_grace_period"]) >= 30, "Triton's own --exit-timeout-secs"
        assert set(deployment.sidecar["depends_on"]) & set(each["depends_on"]) == set()


def test_triton_starts_after_its_repository_is_written_and_has_time_to_load(deployment: Deployment) -> None:
    (fill,) = (name for name, each in SERVICES.items() if each is deployment.fill)
    for each in deployment.tritons.values():
        assert each["depends_on"] == {fill: {"condition": "service_completed_successfully"}}
        assert seconds(each["healthcheck"]["start_period"]) >= 900
        assert int(each["shm_size"].removesuffix("g")) >= 16
        assert each["ulimits"]["memlock"] == -1


def test_callers_reach_the_sidecar_alone(deployment: Deployment) -> None:
    for each in deployment.tritons.values():
        assert [port.rpartition(":")[2] for port in each["ports"]] == ["8002"]
        assert all(port.startswith("127.0.0.1:") for port in each["ports"])
    assert "8001:8001" in deployment.sidecar["ports"]


def test_every_service_that_stays_says_whether_it_is_well() -> None:
    staying = {name for name, each in SERVICES.items() if each.get("restart") == "unless-stopped"}
    without = {name for name in staying if "healthcheck" not in SERVICES[name]}
    assert without == {"dcgm", "collector", "tempo"}, "their images hold no shell"


def test_the_cards_are_watched_by_counters_that_tell_how_busy_they_are() -> None:
    exporter = SERVICES["dcgm"]
    (file,) = mounts(exporter)
    assert file in exporter["command"]
    lines = (ROOT / mounts(exporter)[file][0]).read_text().splitlines()
    shown = [line.split(",") for line in lines if not line.startswith("#")]
    assert {each[0] for each in shown} >= set(COUNTERS)
    assert all(len(each) == 3 and each[1].strip() == "gauge" for each in shown)
    assert exporter["cap_add"] == ["SYS_ADMIN"]
    assert set(exporter["profiles"]) == set(PROFILES)
