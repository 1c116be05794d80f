"""The demo's deployment: a broker (its own or the user's), Triton with the paced CPU engine, and the sidecar."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from dev.broker import ROOT, BrokerError, LocalKafka, create_topics
from dev.chats import ITERATION_S
from dev.observe.pipeline import Pipeline
from dev.server import SidecarProcess, serving
from dev.triton import Triton, TritonSettings, free_ports, running
from sidecar.inflight.profile import profile_named

ENGINE = "a100"
PARTITIONS = 4
GROUP = "demo"
USD_PER_HOUR = 2.0  # about the rent of an A100, so that the boards of money show something
KINDS = {"requests": "requests", "results": "results", "dlq": "requests.dlq"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentShape:
    """How wide the engine is, whose iteration times it keeps, and how far offline yields to online on it."""

    slots: int = 8
    model: str = "toy"
    profile: str = "70b-tp4-a100"  # its iterations are long enough for two busy cores to keep its pace
    yield_rows: int | str | None = None  # None = as the product does

    def finished_per_s(self, output_tokens: float) -> float:
        """How many calls of `output_tokens` a full batch finishes per second, as fast as the engine goes at best."""
        paced_s = profile_named(self.profile).iteration_s(self.slots, 0)
        return self.slots / (output_tokens * (paced_s if self.paced else ITERATION_S))

    @property
    def paced(self) -> bool:
        """True if the engine keeps the times of a profile; the chat model is as fast as the host."""
        return self.model == "toy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kafka:
    """The broker that the demo uses: its own, or the user's."""

    bootstrap_servers: str
    version: str
    cluster_id: str
    topics: dict[str, str]  # by kind: requests, results, dlq


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Everything that runs."""

    kafka: Kafka
    triton: Triton
    server: SidecarProcess


@contextlib.asynccontextmanager
async def deployed(
    shape: DeploymentShape,
    bootstrap_servers: str | None,
    directory: Path,
    pipeline: Pipeline | None = None,
    **more: Any,
) -> AsyncIterator[Deployment]:
    """Broker, Triton and sidecar run, and are ready; all are gone after the block. The pipeline, if any, sees them.

    `more` are further settings of the sidecar.
    """
    async with contextlib.AsyncExitStack() as stack:
        kafka = await stack.enter_async_context(broker(bootstrap_servers, directory))
        triton_settings = TritonSettings(
            model=shape.model,
            slots=shape.slots,
            parameters={"profile": shape.profile} if shape.paced else {},
            trace_url=pipeline.otlp_http or None if pipeline else None,
        )
        triton = await stack.enter_async_context(running(directory, triton_settings))
        document = {**settings(shape, triton, kafka, directory), **more}
        server = await stack.enter_async_context(serving(directory, seen(document, pipeline) if pipeline else document))
        if pipeline is not None:
            pipeline.scrape(sidecar=[server.http], triton=[triton.metrics_url.removeprefix("http://").split("/")[0]])
        yield Deployment(kafka=kafka, triton=triton, server=server)


@contextlib.asynccontextmanager
async def broker(bootstrap_servers: str | None, directory: Path) -> AsyncIterator[Kafka]:
    """A local broker with the project's topics, or topics of the demo's own on the user's cluster."""
    if bootstrap_servers is None:
        async with LocalKafka() as local:
            await local.create_topics(partitions=PARTITIONS)
            yield Kafka(
                bootstrap_servers=local.bootstrap_servers,
                version=local.version,
                cluster_id=local.cluster_id,
                topics={kind: f"inference.{name}" for kind, name in KINDS.items()},
            )
        return
    yield await topics_of_our_own(bootstrap_servers, directory)


async def topics_of_our_own(bootstrap_servers: str, directory: Path) -> Kafka:
    """New topics on the user's cluster, named after the time; they stay, so that their content can be looked at."""
    prefix = f"demo-{int(time.time())}"
    document = yaml.safe_load((ROOT / "kafka" / "topics.yaml").read_text())
    document["topics"] = {name.replace("inference", prefix, 1): each for name, each in document["topics"].items()}
    file = directory / "topics.yaml"
    file.write_text(yaml.safe_dump(document))
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        await admin.start()
    except KafkaError as error:
        raise BrokerError(f"--bootstrap-servers {bootstrap_servers}: {error}") from None
    try:
        cluster = await admin.describe_cluster()
        await create_topics(admin, file, partitions=PARTITIONS, replicas=min(3, len(cluster["brokers"])))
    finally:
        await admin.close()
    return Kafka(
        bootstrap_servers=bootstrap_servers,
        version="unknown: the cluster was given",
        cluster_id=str(cluster["cluster_id"]),
        topics={kind: f"{prefix}.{name}" for kind, name in KINDS.items()},
    )


def sidecar_settings(triton: Triton, engine: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the settings file of a sidecar before `triton`, on free ports. `engine` says what is not usual of it."""
    listen, http = free_ports(2)
    usual = {"name": "e0", "target": triton.target, "metrics_url": triton.metrics_url, "slots": triton.settings.slots}
    return {
        "listen": f"127.0.0.1:{listen}",
        "http": f"127.0.0.1:{http}",
        "tokenizer": str(triton.tokenizer),
        "engines": [{**usual, **engine}],
        **more,
    }


def settings(shape: DeploymentShape, triton: Triton, kafka: Kafka, directory: Path) -> dict[str, Any]:
    """Return the settings file of the demo's sidecar."""
    offline = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "requests_topic": kafka.topics["requests"],
        "results_topic": kafka.topics["results"],
        "dead_letter_topic": kafka.topics["dlq"],
        "group": GROUP,
        "instance_id": "demo-0",
        "first_start": "earliest",
    }
    yields = {} if shape.yield_rows is None else {"yield_rows": shape.yield_rows}
    recorder = {"directory": str(directory / "decisions")}
    return sidecar_settings(triton, {"name": ENGINE, **yields}, recorder=recorder, offline=offline)


def seen(document: dict[str, Any], pipeline: Pipeline) -> dict[str, Any]:
    """Return the settings with a price, and with every span sent to the pipeline."""
    engines = [{**engine, "usd_per_hour": USD_PER_HOUR} for engine in document["engines"]]
    ratios = {"online_ratio": 1.0, "offline_ratio": 1.0, "broker_ratio": 0.1}
    tracing = {"tracing": {"endpoint": pipeline.otlp_grpc, **ratios}} if pipeline.otlp_grpc else {}
    return {**document, "engines": engines, **tracing}


def addresses(deployment: Deployment, shape: DeploymentShape, directory: Path) -> str:
    """Return where everything is, and one example for a caller, a producer and a reader."""
    server, kafka = deployment.server, deployment.kafka
    chat = f'.venv/bin/sidecar chat "What is the capital of France?" --config {directory / "sidecar.yaml"}'
    question = "" if shape.paced else f"\nA question (--offline asks in the other lane):\n\n{chat}\n"
    return f"""Running until Ctrl-C:
  sidecar (gRPC, for callers)  {server.listen}
  status page and metrics      http://{server.http}/   http://{server.http}/metrics
  Triton itself                {deployment.triton.target} (gRPC)   {deployment.triton.metrics_url}
  Kafka                        {kafka.bootstrap_servers}
{question}
A caller, with tritonclient:

.venv/bin/python - <<'EOF'
import numpy as np, tritonclient.grpc as triton
client = triton.InferenceServerClient("{server.listen}")
text = triton.InferInput("text_input", [1, 1], "BYTES")
text.set_data_from_numpy(np.array([[b"how far is the sea"]], dtype=object))
length = triton.InferInput("max_tokens", [1, 1], "INT32")
length.set_data_from_numpy(np.array([[32]], dtype=np.int32))
print(client.infer("ensemble", [text, length]).as_numpy("text_output"))
EOF

A producer and a reader, with kcat:

echo '{{"id": "mine-1", "prompt": "how far is the sea", "max_tokens": 64}}' \\
  | kcat -P -b {kafka.bootstrap_servers} -t {kafka.topics["requests"]}
kcat -C -b {kafka.bootstrap_servers} -t {kafka.topics["results"]} -X isolation.level=read_committed \\
  -e -f '%p %o %k %s\\n'
"""
