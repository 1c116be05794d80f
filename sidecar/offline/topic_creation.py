"""Make the topics that the settings name, as `topics.yaml` describes them. A topic that exists is never changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, TopicAuthorizationFailedError, for_code
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.metadata import MetadataRequest

from sidecar.core.errors import SettingsError
from sidecar.core.settings import require
from sidecar.offline.kafka_topics import BYTES_MAX, bytes_needed
from sidecar.settings.offline import OfflineSettings

# What topics.yaml calls the topic of each setting. The settings may give the topic another name.
ROLES = {
    "requests_topic": "inference.requests",
    "results_topic": "inference.results",
    "dead_letter_topic": "inference.requests.dlq",
    "progress_topic": "inference.progress",
    "jobs_topic": "inference.jobs",
}
REPLICAS_USUAL = 3
_KEY = re.compile(r"[a-z][a-z.]*[a-z]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRules:
    """What a topics file states: how many partitions each topic has, and the configuration of each topic by name."""

    partitions: int
    topics: Mapping[str, Mapping[str, str]]

    def keys(self) -> list[str]:
        """Return every entry of a configuration that a wanted topic may have."""
        return sorted({BYTES_MAX, *(key for config in self.topics.values() for key in config)})


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedTopic:
    """One topic as the settings and the topics file ask for it."""

    name: str
    partitions: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTopic:
    """One topic as the cluster has it. `config` holds what we may read of it."""

    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the cluster has: its brokers, and those of the wanted topics that exist."""

    brokers: int
    topics: Mapping[str, FoundTopic]


def topic_rules(text: str, file: str) -> TopicRules:
    """Read a topics file. Raises SettingsError."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    fits = isinstance(document, dict) and set(document) == {"partitions", "topics"}
    require(fits, f"{file} must hold `partitions` and `topics`, and nothing else")
    partitions, topics = document["partitions"], document["topics"]
    require(type(partitions) is int and partitions > 0, f"{file}: partitions must be >= 1, not {partitions!r}")
    require(isinstance(topics, dict) and bool(topics), f"{file}: topics must describe at least one topic")
    for name, config in topics.items():
        fits = isinstance(config, dict) and all(_is_entry(key, value) for key, value in config.items())
        require(fits, f"{file}: topics.{name} must map names such as retention.ms to numbers or texts")
    return TopicRules(
        partitions=partitions,
        topics={name: {key: str(value) for key, value in config.items()} for name, config in topics.items()},
    )


def _is_entry(key: object, value: object) -> bool:
    return isinstance(key, str) and _KEY.fullmatch(key) is not None and type(value) in (int, float, str)


def names(settings: OfflineSettings) -> list[str]:
    """Return the topics that the settings name, requests first."""
    return [name for role in ROLES if (name := getattr(settings, role))]


def wanted_topics(settings: OfflineSettings, rules: TopicRules, partitions: int) -> list[WantedTopic]:
    """Return every topic that the settings name, with a record limit that takes the longest record of the lane.

    A topic is looked up in the file by its own name, then by the name that the project gives to its part. Raises
    SettingsError if the file has neither.
    """
    found = []
    for role, usual in ROLES.items():
        name = getattr(settings, role)
        if not name:
            continue
        config = rules.topics.get(name, rules.topics.get(usual))
        if config is None:
            raise SettingsError(f"the topics file describes neither {name} ({role}) nor {usual}")
        if (needed := bytes_needed(settings, name)) is not None:
            stated = config.get(BYTES_MAX, "0")
            config = {**config, BYTES_MAX: str(max(needed, int(stated) if stated.isdigit() else 0))}
        found.append(WantedTopic(name=name, partitions=partitions, config=config))
    return found


def differences(wanted: WantedTopic, found: FoundTopic) -> Iterator[str]:
    """Say what an existing topic has other than asked for, and the lane can live with."""
    for key, value in wanted.config.items():
        now = found.config.get(key)
        if now is None or now == value:
            continue
        if key == BYTES_MAX and int(now) > int(value):
            continue
        yield f"{key} is {now}, not {value}"


async def look(admin: AIOKafkaAdminClient, wanted: Sequence[str], keys: Sequence[str]) -> Cluster:
    """Return what the cluster has of these topics, with these entries of their configuration. Creates nothing."""
    client = admin._client  # the public call would let the broker make what it does not know
    request = MetadataRequest(list(wanted), allow_auto_topic_creation=False)
    answer = (await client.send(client.get_random_node(), request)).to_object()
    partitions = {}
    for each in answer["topics"]:
        if for_code(each["error_code"]) is TopicAuthorizationFailedError:
            raise TopicAuthorizationFailedError(f"Describe on topic {each['topic']}")
        if each["partitions"]:
            partitions[each["topic"]] = len(each["partitions"])
    configs = await _configs(client, list(partitions), keys)
    topics = {name: FoundTopic(partitions=count, config=configs[name]) for name, count in partitions.items()}
    return Cluster(brokers=len(answer["brokers"]), topics=topics)


async def _configs(client: Any, topics: Sequence[str], keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return these entries of each topic; none of a topic whose configuration we may not read."""
    found: dict[str, dict[str, str]] = {name: {} for name in topics}
    if not topics:
        return found
    request = DescribeConfigsRequest([(ConfigResourceType.TOPIC, name, list(keys)) for name in topics], False)
    answer = (await client.send(client.get_random_node(), request)).to_object()
    for resource in answer["resources"]:
        for entry in () if resource["error_code"] else resource["config_entries"]:
            found[resource["resource_name"]][entry["config_names"]] = str(entry["config_value"])
    return found


async def create(admin: AIOKafkaAdminClient, topics: Sequence[WantedTopic], replicas: int) -> dict[str, str]:
    """Make these topics. Return, for each one that the broker refused, why; one that exists by now is not refused."""
    config = {"min.insync.replicas": str(max(1, replicas - 1))}  # one broker may stop, and writes go on
    answer = await admin.create_topics(
        [
            NewTopic(
                name=each.name,
                num_partitions=each.partitions,
                replication_factor=replicas,
                topic_configs={**config, **each.config},
            )
            for each in topics
        ]
    )
    refused = {}
    for name, code, *words in answer.topic_errors:
        if code and for_code(code) is not TopicAlreadyExistsError:
            refused[name] = (words[0] if words else "") or for_code(code).__name__
    return refused
