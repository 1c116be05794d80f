"""`sidecar topics create` says of each topic what it would do, and of each mistake where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar import data
from sidecar.cli import main
from sidecar.cli.topics import TopicPlan, Wish, register_topics
from sidecar.offline.topic_creation import Cluster, FoundTopic, topic_rules
from sidecar.settings.offline import OfflineSettings

RULES = topic_rules(data.read("topics.yaml"), "topics.yaml")
TOKENIZER = Path(__file__).parents[2] / "model_repository/tokenizer/tokenizer.json"


def plan(topics: dict[str, FoundTopic], brokers: int = 1, **wish: Any) -> TopicPlan:
    settings = OfflineSettings(progress_topic="inference.progress")
    return TopicPlan.of(settings, Wish(rules=RULES, **wish), Cluster(brokers=brokers, topics=topics))


def verdicts(found: TopicPlan, refused: dict[str, str] | None = None, *, dry_run: bool = False) -> list[str]:
    return [found.finding(each, refused or {}, dry_run=dry_run)[0] for each in found.wanted]


def settings_file(directory: Path, **offline: Any) -> str:
    file = directory / "sidecar.yaml"
    document: dict[str, Any] = {"engines": [{"name": "a"}], "tokenizer": str(TOKENIZER)}
    file.write_text(yaml.safe_dump(document | ({"offline": offline} if offline else {})))
    return str(file)


def call(*arguments: str) -> int:
    return main.main(["topics", "create", *arguments], {}, [register_topics])


def test_an_empty_cluster_gets_all_four_with_as_many_replicas_as_it_has_brokers_up_to_three() -> None:
    assert [plan({}, brokers).replicas for brokers in (1, 2, 3, 5)] == [1, 2, 3, 3]
    assert plan({}, 5, replicas=1).replicas == 1
    found = plan({})
    assert [each.partitions for each in found.missing] == [6, 6, 6, 6]
    assert (verdicts(found), verdicts(found, dry_run=True)) == (["created"] * 4, ["missing"] * 4)


def test_new_topics_follow_the_partitions_of_the_requests_that_are_there() -> None:
    requests = {"inference.requests": FoundTopic(partitions=12)}
    assert [each.partitions for each in plan(requests).missing] == [12, 12, 12]
    assert [each.partitions for each in plan(requests, partitions=3).missing] == [12, 12, 12]
    assert [each.partitions for each in plan(requests, partitions=24).missing] == [24, 24, 24]
    assert [each.partitions for each in plan({}, partitions=24).missing] == [24, 24, 24, 24]


def test_what_exists_is_as_asked_for_or_differs_or_is_too_narrow() -> None:
    found = plan(
        {
            "inference.requests": FoundTopic(partitions=4),
            "inference.results": FoundTopic(partitions=3),
            "inference.requests.dlq": FoundTopic(partitions=5, config={"retention.ms": "604800000"}),
            "inference.progress": FoundTopic(partitions=4, config={"cleanup.policy": "compact"}),
        }
    )
    assert [found.finding(each, {}, dry_run=False) for each in found.wanted] == [
        ("exists", "inference.requests: 4 partitions, as asked for"),
        (
            "FAILED",
            "inference.results: has 3 partitions and needs 4: a result is written to the partition that its item came"
            " from; kafka-topics.sh --alter --topic inference.results --partitions 4 adds them",
        ),
        ("differs", "inference.requests.dlq: retention.ms is 604800000, not -1; kafka-configs.sh changes it"),
        ("exists", "inference.progress: 4 partitions, as asked for"),
    ]


def test_what_the_broker_refuses_has_the_brokers_words() -> None:
    found = plan({}, replicas=3)
    refused = {"inference.results": "Unable to replicate the partition 3 time(s)"}
    assert verdicts(found, refused) == ["created", "FAILED", "created", "created"]
    assert found.finding(found.wanted[1], refused, dry_run=False)[1].endswith(
        "the broker refuses it: " + refused["inference.results"]
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--partitions", "0"], "--partitions must be >= 1, not 0"),
        (["--replicas", "-1"], "--replicas must be >= 1, not -1"),
        (["--topics", "none.yaml"], "cannot read none.yaml: No such file or directory"),
        (["--topics", str(TOKENIZER)], "must hold `partitions` and `topics`, and nothing else"),
    ],
)
def test_an_argument_at_fault_is_one_line_and_nothing_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert call("--config", settings_file(tmp_path, bootstrap_servers="127.0.0.1:1"), *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sidecar: ")
    assert line.endswith(told)


def test_settings_without_kafka_have_no_topics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--config", settings_file(tmp_path)) == 2
    assert "has no offline part, so there is no Kafka" in capsys.readouterr().err


def test_a_broker_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--config", settings_file(tmp_path, bootstrap_servers="127.0.0.1:1")) == 1
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("sidecar: Kafka at 127.0.0.1:1: no broker answers: ")
