"""Where a command finds Kafka."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from aiokafka.errors import KafkaConnectionError

from sidecar.cli.where import add_where, job_settings, next_where, offline_settings, run
from sidecar.core.errors import SettingsError
from sidecar.offline.kafka_errors import LogError

TOKENIZER = Path(__file__).parents[2] / "model_repository/tokenizer/tokenizer.json"


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_where(parser)
    return parser.parse_args(arguments)


def test_an_address_stands_before_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "my sidecar.yaml"
    offline = "offline: {group: g, bootstrap_servers: 'a:1', jobs_topic: mine}"
    file.write_text(f"engines: [{{name: e}}]\ntokenizer: {TOKENIZER}\n{offline}\n")
    stated = options("--config", str(file), "--bootstrap-servers", "b:2")
    settings, whole = offline_settings(stated, {})
    assert (settings.group, settings.bootstrap_servers, whole is not None) == ("g", "b:2", True)
    assert job_settings(stated, {}).jobs_topic == "mine"
    assert next_where(stated) == f" --config '{file}' --bootstrap-servers b:2"


def test_without_a_file_the_topics_of_jobs_have_their_usual_names() -> None:
    settings = job_settings(options(), {})
    assert (settings.jobs_topic, settings.progress_topic) == ("inference.jobs", "inference.progress")
    assert offline_settings(options(), {})[0].jobs_topic == ""
    assert next_where(options()) == ""


def test_settings_without_kafka_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("engines: [{name: e}]\n")
    with pytest.raises(SettingsError, match="has no offline part"):
        offline_settings(options("--config", str(file)), {})


def test_a_broker_that_does_not_answer_is_told_in_a_line() -> None:
    async def failing() -> None:
        raise KafkaConnectionError("refused")

    with pytest.raises(LogError, match="Kafka: "):
        run(failing())
