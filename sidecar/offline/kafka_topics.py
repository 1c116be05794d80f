"""What the topics are like: how many partitions each has, and how long a record each takes.

Asked when the lane starts and at each opening of a partition, because topics are changed while we run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.metadata import MetadataRequest

from sidecar.offline.kafka_errors import LogError
from sidecar.offline.lane_state import Cause
from sidecar.settings.offline import OfflineSettings

HEADERS_BYTES = 64 << 10  # that a dead letter may be longer than its item
BYTES_MAX = "max.message.bytes"  # of a batch as it is stored, so after compression


def bytes_needed(settings: OfflineSettings, topic: str) -> int | None:
    """Return the `max.message.bytes` that takes every record of the lane, or None where records are short."""
    if topic in (settings.progress_topic, settings.jobs_topic):
        return None
    return settings.message_bytes_max + (HEADERS_BYTES if topic == settings.dead_letter_topic else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One topic. `bytes_max` is None where we may not read its configuration."""

    name: str
    partitions: int
    bytes_max: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """The topics of the lane as they are now."""

    cluster_id: str
    requests: Topic
    targets: tuple[Topic, ...]  # what a transaction writes to: results, dead letters, progress

    def check(self, partition: int) -> None:
        """Raises LogError if a result cannot be written where its item comes from."""
        for topic in self.targets:
            if partition >= topic.partitions:
                raise LogError(
                    f"topic {topic.name} has {topic.partitions} partitions, {self.requests.name} has "
                    f"{self.requests.partitions}: partition {partition} waits until it has as many",
                    Cause.PARTITION_MISSING,
                )

    @property
    def bytes_max(self) -> Mapping[str, int]:
        """The longest batch that each target takes, where it is known."""
        return {topic.name: topic.bytes_max for topic in self.targets if topic.bytes_max is not None}

    def findings(self, settings: OfflineSettings) -> Iterator[tuple[str, str]]:
        """(ok, warning or FAILED; what was found): whether every result and every dead letter has its place."""
        yield "ok", f"kafka: topic {self.requests.name} has {self.requests.partitions} partitions"
        for topic in self.targets:
            if topic.partitions < self.requests.partitions:
                yield (
                    "FAILED",
                    f"kafka: topic {topic.name} has {topic.partitions} partitions, {self.requests.name} has "
                    f"{self.requests.partitions}: a result is written to the partition that its item came from",
                )
            else:
                yield "ok", f"kafka: topic {topic.name} has {topic.partitions} partitions"
            needed = bytes_needed(settings, topic.name)
            if needed is None or topic.bytes_max is None or topic.bytes_max >= needed:
                continue
            becomes = "is cut" if topic.name == settings.dead_letter_topic else "becomes a dead letter"
            yield (
                "warning",
                f"kafka: topic {topic.name} has {BYTES_MAX} {topic.bytes_max}, message_bytes_max asks for {needed}: "
                f"what is longer {becomes}",
            )


async def look(client: AIOKafkaClient, settings: OfflineSettings) -> Topics:
    """The topics now. Raises LogError if one is missing or may not be seen, and KafkaError; call it within `call`."""
    names = [settings.requests_topic, settings.results_topic, settings.dead_letter_topic]
    names += filter(None, [settings.progress_topic, settings.jobs_topic])
    node = client.get_random_node()
    answer = (await client.send(node, MetadataRequest(names, allow_auto_topic_creation=False))).to_object()
    partitions = {each["topic"]: _partitions(each) for each in answer["topics"]}
    for name in names:
        if not partitions.get(name):  # it may have been made a moment ago, or be made yet
            raise LogError(f"topic {name} does not exist", Cause.TOPIC_MISSING)
    limits = await _bytes_max(client, names)
    requests, *targets = (Topic(name=n, partitions=partitions[n], bytes_max=limits.get(n)) for n in names)
    written = tuple(each for each in targets if each.name != settings.jobs_topic)  # its partitions are its own
    return Topics(cluster_id=str(answer.get("cluster_id") or ""), requests=requests, targets=written)


async def require_topic(client: AIOKafkaClient, name: str) -> None:
    """The topic is there. Raises LogError if it is not, or may not be seen, and KafkaError.

    A producer alone would wait for it, or have a broker that makes topics by itself make one that nobody reads.
    """
    answer = await client.send(client.get_random_node(), MetadataRequest([name], allow_auto_topic_creation=False))
    if not any(map(_partitions, answer.to_object()["topics"])):
        raise LogError(f"topic {name} does not exist", Cause.TOPIC_MISSING)


def _partitions(topic: Mapping[str, object]) -> int:
    error = for_code(topic["error_code"])
    if error is UnknownTopicOrPartitionError:
        return 0
    if error is TopicAuthorizationFailedError:
        raise LogError(f"a right is missing: Describe on topic {topic['topic']}", Cause.RIGHTS)
    found = topic["partitions"]
    return len(found) if isinstance(found, list) else 0


async def _bytes_max(client: AIOKafkaClient, names: list[str]) -> dict[str, int]:
    """`max.message.bytes` of each topic; those are missing whose configuration we may not read."""
    request = DescribeConfigsRequest([(ConfigResourceType.TOPIC, name, [BYTES_MAX]) for name in names], False)
    try:
        answer = (await client.send(client.get_random_node(), request)).to_object()
    except KafkaError:
        return {}  # a broker that does not tell: what it refuses is found by halving
    found = {}
    for resource in answer["resources"]:
        for entry in () if resource["error_code"] else resource["config_entries"]:
            if entry["config_names"] == BYTES_MAX and str(entry["config_value"]).isdigit():
                found[resource["resource_name"]] = int(entry["config_value"])
    return found
