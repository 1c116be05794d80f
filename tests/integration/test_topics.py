"""`sidecar topics create` on the real Kafka: what it makes is what the doctor and the lane ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from dev.broker import LocalKafka
from sidecar.offline.topic_creation import look
from tests.integration.test_operate import run

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]
TOKENIZER = Path(__file__).parents[2] / "model_repository/tokenizer/tokenizer.json"
NAMES = ("team.in", "team.out", "team.dead", "team.progress")


def offline(servers: str) -> dict[str, Any]:
    topics = dict(zip(("requests_topic", "results_topic", "dead_letter_topic", "progress_topic"), NAMES, strict=True))
    return {"bootstrap_servers": servers, "message_bytes_max": 4 << 20, **topics}


def told(output: str) -> dict[str, str]:
    """What became of each topic, by its name."""
    return {line.split()[1].rstrip(":"): line.split()[0] for line in output.splitlines()}


async def test_topics_are_created_once_and_then_said_to_exist_to_differ_or_to_be_too_narrow(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    file = tmp_path / "sidecar.yaml"
    settings = offline(kafka.bootstrap_servers)
    engines = [{"name": "a", "target": "127.0.0.1:1"}]
    file.write_text(yaml.safe_dump({"engines": engines, "tokenizer": str(TOKENIZER), "offline": settings}))
    command = ("topics", "create", "--config", str(file))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        code, output = await run(*command, "--dry-run")
        assert (code, told(output)) == (0, dict.fromkeys(NAMES, "missing")), output
        assert (await look(admin, NAMES, [])).topics == {}

        await admin.create_topics([NewTopic("team.dead", 2, 1, topic_configs={"retention.ms": "1000000"})])
        code, output = await run(*command, "--partitions", "2")
        assert (code, told(output)) == (0, dict.fromkeys(NAMES, "created") | {"team.dead": "differs"}), output
        assert "retention.ms is 1000000, not -1" in output
        assert "max.message.bytes is 2162688, not 4259840" in output  # the local broker's own default

        found = (await look(admin, NAMES, ["max.message.bytes", "cleanup.policy", "min.insync.replicas"])).topics
        assert [found[name].partitions for name in NAMES] == [2, 2, 2, 2]
        assert found["team.out"].config == {
            "max.message.bytes": str(4 << 20),
            "cleanup.policy": "delete",
            "min.insync.replicas": "1",
        }
        assert found["team.progress"].config["cleanup.policy"] == "compact"
        _, output = await run("doctor", "--config", str(file))
        verdicts = [line.split()[0] for line in output.splitlines() if " kafka: topic " in line]
        assert verdicts == ["ok", "ok", "ok", "warning", "ok"], output  # the one that differs takes less

        code, output = await run(*command)
        assert (code, told(output)) == (0, dict.fromkeys(NAMES, "exists") | {"team.dead": "differs"}), output

        await admin.delete_topics(["team.out", "team.progress"])
        await admin.create_topics([NewTopic("team.out", 1, 1)])
        code, output = await run(*command, "--replicas", "2")
        assert code == 1, output
        assert told(output)["team.out"] == told(output)["team.progress"] == "FAILED"
        assert "kafka-topics.sh --alter --topic team.out --partitions 2" in output
        assert "team.progress: the broker refuses it: Unable to replicate" in output
    finally:
        await admin.close()
