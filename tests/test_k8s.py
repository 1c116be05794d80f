"""The manifests are what Kubernetes, KEDA and the Prometheus operator take, and one pod holds together.

Kubernetes' own schemas come with kubernetes-validate; those of the two operators are written down here as far as we use
them. No cluster and no network is asked.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from sidecar import __version__
from sidecar.__main__ import COMMANDS
from sidecar.cli.engine_build import IMAGE
from sidecar.cli.main import main
from sidecar.cli.serving_profile import load_profile
from sidecar.settings.file import load_settings
from sidecar.telemetry.metric_table import METRICS
from tests.cli.test_engine_build import CONFIG_70B
from tests.cli.test_fill import parameters
from tests.cli.test_launch import processes
from tests.kustomize import Manifest, built

ROOT = Path(__file__).parent.parent
K8S = ROOT / "deploy/k8s"
POOLS = ("tp8", "tp4", "batch")
FOLDERS = (*(f"overlays/{each}" for each in POOLS), "engine-build")
VERSIONS = ("1.29", "1.34")  # the first with native sidecars, and a recent one
TEXT = {"type": "string"}
WHOLE = {"type": "integer", "minimum": 0}


def closed(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """The schema of an object with these fields and no others."""
    properties = {**required, **optional}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


KAFKA = ("bootstrapServers", "consumerGroup", "topic", "lagThreshold", "activationLagThreshold", "offsetResetPolicy")
FLAGS = ("allowIdleConsumers", "scaleToZeroOnInvalidOffset", "excludePersistentLag")
TRIGGERS = {
    "prometheus": closed(
        {
            "type": {"const": "prometheus"},
            "metadata": closed(dict.fromkeys(("serverAddress", "query", "threshold"), TEXT)),
        },
        metricType={"enum": ["Value", "AverageValue"]},
    ),
    "kafka": closed({"type": {"const": "kafka"}, "metadata": closed(dict.fromkeys((*KAFKA, *FLAGS), TEXT))}),
}
SPECS = {
    "ScaledObject": (
        "keda.sh/v1alpha1",
        closed(
            {
                "scaleTargetRef": closed({"apiVersion": TEXT, "kind": TEXT, "name": TEXT}),
                "minReplicaCount": WHOLE,
                "maxReplicaCount": WHOLE,
                "cooldownPeriod": WHOLE,
                "triggers": {"type": "array", "minItems": 1, "items": {"oneOf": [*TRIGGERS.values()]}},
            },
            advanced=closed({"horizontalPodAutoscalerConfig": closed({"behavior": {"type": "object"}})}),
        ),
    ),
    "PodMonitor": (
        "monitoring.coreos.com/v1",
        closed(
            {
                "selector": closed({"matchLabels": {"type": "object"}}),
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": closed({"port": TEXT, "path": TEXT}, interval={"type": "string", "pattern": "^[0-9]+s$"}),
                },
            }
        ),
    ),
}


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> dict[str, Manifest]:
    return {each["kind"]: each for each in built(K8S / "overlays" / request.param)}


def pod(pool: dict[str, Manifest]) -> Any:
    return pool["StatefulSet"]["spec"]["template"]["spec"]


def container(spec: Any, name: str) -> Any:
    (found,) = (each for each in (*spec["initContainers"], *spec["containers"]) if each["name"] == name)
    return found


def mounts(container: Any) -> dict[str, dict[str, Any]]:
    return {each["mountPath"]: each for each in container["volumeMounts"]}


def fill(pool: dict[str, Manifest], out: Path) -> Path:
    """What the pod's `fill` writes, from the settings of its config map."""
    out.mkdir()
    (out / "base.yaml").write_text(pool["ConfigMap"]["data"]["sidecar.yaml"])
    here = {"--project": ROOT, "--settings": out / "base.yaml", "--out": out}
    words = [each.partition("=") for each in container(pod(pool), "fill")["args"]]
    words = [(name, sign, str(here.get(name, value))) for name, sign, value in words]
    assert main(["".join(each) for each in words], {}, COMMANDS) == 0
    return out


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_manifest_is_one_that_its_owner_takes(folder: str, version: str) -> None:
    for manifest in built(K8S / folder):
        if manifest["kind"] in SPECS:
            api, schema = SPECS[manifest["kind"]]
            assert manifest["apiVersion"] == api
            assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
            jsonschema.validate(manifest["spec"], schema)
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_kubectl_builds_the_same(folder: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", str(K8S / folder)], capture_output=True, text=True, check=True)
    theirs = [each for each in yaml.safe_load_all(done.stdout) if each]

    def ordered(found: list[Manifest]) -> list[str]:
        return sorted(json.dumps(each, sort_keys=True) for each in found)

    assert ordered(theirs) == ordered(built(K8S / folder))


def test_the_sidecar_drains_while_triton_still_runs(pool: dict[str, Manifest], tmp_path: Path) -> None:
    """Kubernetes ends main containers first; an init container that always restarts lives until they are gone."""
    spec = pod(pool)
    assert [(each["name"], each.get("restartPolicy")) for each in spec["initContainers"]] == [
        ("fill", None),
        ("triton", "Always"),
    ]
    assert [each["name"] for each in spec["containers"]] == ["sidecar"]
    settings = yaml.safe_load((fill(pool, tmp_path / "out") / "sidecar.yaml").read_text())
    assert spec["terminationGracePeriodSeconds"] > settings["drain_timeout_s"] + 30


def test_the_pod_has_a_card_for_each_rank_that_it_starts(pool: dict[str, Manifest], tmp_path: Path) -> None:
    serving, triton = fill(pool, tmp_path / "out"), container(pod(pool), "triton")
    (tmp_path / "ranks").mkdir()
    ranks = processes((serving / "run.sh").read_text(), tmp_path / "ranks")
    profile = load_profile(container(pod(pool), "fill")["args"][1], ROOT)
    assert len(ranks) == profile.tensor_parallel_size == triton["resources"]["limits"]["nvidia.com/gpu"]
    assert triton["command"] == ["bash", "/serving/run.sh"]
    (rank0,) = (each for each in ranks if "--grpc-address=127.0.0.1" in each)
    ports = {each["containerPort"] for each in container(pod(pool), "sidecar")["ports"]}
    assert {"--grpc-port=8011"} <= set(rank0)
    assert not ports & {8011, 8000, 8002}, "the containers of a pod share their ports"


def test_every_path_that_is_served_is_mounted_where_it_is_read(pool: dict[str, Manifest], tmp_path: Path) -> None:
    serving, spec = fill(pool, tmp_path / "out"), pod(pool)
    paths = {
        value
        for config in serving.rglob("config.pbtxt")
        for value in parameters(config.parent).values()
        if value.startswith("/")
    }
    assert paths == {"/engine", "/tokenizer"}
    triton, sidecar = mounts(container(spec, "triton")), mounts(container(spec, "sidecar"))
    for path in (*paths, "/serving"):
        assert triton[path] == sidecar[path]
        assert sidecar[path]["readOnly"]
    volumes = {each["name"] for each in spec["volumes"]}
    for each in (*spec["initContainers"], *spec["containers"]):
        assert {mount["name"] for mount in each["volumeMounts"]} <= volumes
    (shm,) = (each["emptyDir"] for each in spec["volumes"] if each["name"] == triton["/dev/shm"]["name"])
    assert shm == {"medium": "Memory", "sizeLimit": "16Gi"}


def test_the_settings_are_valid_and_each_pod_is_a_consumer_of_its_own(
    pool: dict[str, Manifest], tmp_path: Path
) -> None:
    env = {each["name"]: each for each in container(pod(pool), "sidecar")["env"]}
    assert env["POD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    instance = env["SIDECAR__OFFLINE__INSTANCE_ID"]["value"]
    assert instance == "$(POD_NAMESPACE)-$(POD_NAME)"
    given = {
        "SIDECAR__TOKENIZER": str(ROOT / "model_repository/tokenizer"),
        "SIDECAR__OFFLINE__INSTANCE_ID": instance.replace("$(POD_NAMESPACE)", "inference").replace(
            "$(POD_NAME)", "sidecar-0"
        ),
    }
    settings = load_settings(fill(pool, tmp_path / "out") / "sidecar.yaml", given)
    assert [each.target for each in settings.engines] == ["127.0.0.1:8011"]
    assert settings.offline is not None
    assert settings.offline.instance_id == "inference-sidecar-0"
    ports = {each["name"]: each["containerPort"] for each in container(pod(pool), "sidecar")["ports"]}
    assert (settings.listen, settings.http) == (f"0.0.0.0:{ports['grpc']}", f"0.0.0.0:{ports['http']}")


def test_probes_ask_what_is_there(pool: dict[str, Manifest]) -> None:
    sidecar, triton = container(pod(pool), "sidecar"), container(pod(pool), "triton")
    assert sidecar["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert sidecar["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    startup = triton["startupProbe"]
    assert startup["httpGet"]["path"] == "/v2/health/ready"
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 900
    for each in (sidecar, triton):
        names = {port["name"] for port in each["ports"]}
        probes = [value for key, value in each.items() if key.endswith("Probe")]
        assert {probe["httpGet"]["port"] for probe in probes} <= names


def test_selectors_and_ports_name_what_the_pod_has(pool: dict[str, Manifest]) -> None:
    labels = pool["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    spec = pod(pool)
    ports = {port["name"] for name in ("triton", "sidecar") for port in container(spec, name)["ports"]}
    assert pool["Service"]["spec"]["selector"] == labels
    assert pool["Service"]["metadata"]["name"] == pool["StatefulSet"]["spec"]["serviceName"]
    assert pool["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert pool["PodMonitor"]["spec"]["selector"]["matchLabels"] == labels
    assert {each["port"] for each in pool["PodMonitor"]["spec"]["podMetricsEndpoints"]} <= ports
    policy = pool["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == {"grpc", "http", "triton-metrics"}
    target = pool["ScaledObject"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", pool["StatefulSet"]["metadata"]["name"])


def test_nothing_of_ours_runs_as_root_or_writes_but_where_it_must(pool: dict[str, Manifest]) -> None:
    job = built(K8S / "engine-build")[0]["spec"]["template"]["spec"]
    for spec in (pod(pool), job):
        ours = [each for each in (*spec["initContainers"], *spec["containers"]) if each["image"].startswith("backfill")]
        assert len(ours) == 2
        for each in ours:
            assert each["image"] == f"backfill-sidecar:{__version__}"
            rights = each["securityContext"]
            assert (rights["runAsNonRoot"], rights["readOnlyRootFilesystem"]) == (True, True)
            assert (rights["allowPrivilegeEscalation"], rights["capabilities"]) == (False, {"drop": ["ALL"]})
        theirs = {each["image"] for each in spec["initContainers"] if each not in ours}
        assert theirs == {IMAGE}, "an engine loads only in the release that built it"


@pytest.mark.parametrize("name", ["tp8", "tp4"])
def test_a_pool_for_callers_stays_warm_and_follows_figures_that_the_sidecar_has(name: str) -> None:
    (scaled,) = (each["spec"] for each in built(K8S / "overlays" / name) if each["kind"] == "ScaledObject")
    assert scaled["minReplicaCount"] >= 1
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 900
    known = {each.name: each.labels for each in METRICS}
    queries = [each["metadata"]["query"] for each in scaled["triggers"]]
    used = {
        word for query in queries for word in query.replace("(", " ").replace("{", " ").split() if "sidecar_" in word
    }
    assert used == {"sidecar_queue_depth", "sidecar_guard_signal", "sidecar_slots_in_use"} <= known.keys()
    assert {"engine", "lane"} <= set(known["sidecar_slots_in_use"])
    assert "signal" in known["sidecar_guard_signal"]


def test_the_batch_pool_goes_when_no_item_waits_and_only_then(tmp_path: Path) -> None:
    pool = {each["kind"]: each for each in built(K8S / "overlays/batch")}
    scaled = pool["ScaledObject"]["spec"]
    assert scaled["minReplicaCount"] == 0
    (trigger,) = scaled["triggers"]
    given = trigger["metadata"]
    settings = yaml.safe_load((fill(pool, tmp_path / "out") / "sidecar.yaml").read_text())["offline"]
    assert (given["consumerGroup"], given["bootstrapServers"]) == (settings["group"], settings["bootstrap_servers"])
    kafka = yaml.safe_load((ROOT / "kafka/topics.yaml").read_text())
    assert given["topic"] == next(iter(kafka["topics"])) == "inference.requests"
    assert scaled["maxReplicaCount"] <= kafka["partitions"], "a consumer without a partition has nothing to do"
    assert given["excludePersistentLag"] == given["scaleToZeroOnInvalidOffset"] == "false"


def test_the_job_builds_what_the_pool_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = built(K8S / "engine-build")[0]["spec"]["template"]["spec"]
    plan, finish = container(spec, "plan"), container(spec, "finish")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_70B))
    (line,) = plan["args"]
    command, _, script = line.partition(" > ")
    assert script == container(spec, "build")["command"][1]
    here = {"--model": tmp_path, "--project": ROOT}

    def run(words: list[str], **more: Path) -> int:
        parts = [each.partition("=") for each in words]
        places = {**here, **{f"--{name}": value for name, value in more.items()}}
        return main([f"{name}{sign}{places.get(name, value)}" for name, sign, value in parts], {}, COMMANDS)

    assert run(command.split()[1:]) == 0
    shown = capsys.readouterr().out
    assert "trtllm-build" in shown
    assert "--output_dir /out/engine" in shown
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/config.json").write_text('{"version": "1.2.1"}')
    assert run(finish["args"], out=tmp_path) == 0
    assert json.loads((tmp_path / "manifest.json").read_text())["profile"]["name"] == "70b-tp8"
    served = container(pod({each["kind"]: each for each in built(K8S / "overlays/tp8")}), "fill")["args"][1]
    assert served == finish["args"][1]
    cards = container(spec, "build")["resources"]["limits"]["nvidia.com/gpu"]
    assert cards == load_profile(served, ROOT).tensor_parallel_size
