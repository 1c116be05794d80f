"""`sidecar topics create`: the topics that the settings name exist afterwards, as the lane needs them."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

from sidecar import data
from sidecar.core.errors import SettingsError
from sidecar.offline.kafka_errors import LogError, call, hear_aiokafka
from sidecar.offline.kafka_options import client_options
from sidecar.offline.topic_creation import (
    REPLICAS_USUAL,
    Cluster,
    FoundTopic,
    TopicRules,
    WantedTopic,
    create,
    differences,
    look,
    names,
    topic_rules,
    wanted_topics,
)
from sidecar.settings.file import load_settings
from sidecar.settings.offline import OfflineSettings

Finding = tuple[str, str]  # created, missing, exists, differs or FAILED; of which topic, and what
HELP = """
Create the topics that the settings name: requests, results, dead letters and, if it is named, progress. Each gets a
max.message.bytes that takes the longest record, as `sidecar doctor` asks for. A topic that exists is not changed: it
is said what differs, and what to do where the lane could not work with it.

examples:
  sidecar topics create --config sidecar.yaml --dry-run
  sidecar topics create --config sidecar.yaml --topics topics.yaml --replicas 3

exit codes:
  0  every topic exists or was created (with --dry-run: could be)
  1  Kafka does not answer or refuses a topic, or one has fewer partitions than the topic of requests
  2  the settings, the topics file or an argument is at fault; nothing was created
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the arguments ask for beside the settings. None = what is usual."""

    rules: TopicRules
    partitions: int | None = None
    replicas: int | None = None
    dry_run: bool = False


def register_topics(subparsers: Any) -> None:
    """Add `topics` with its action."""
    parser = subparsers.add_parser(
        "topics",
        help="create the topics that the settings name",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create_parser = actions.add_parser(
        "create",
        help="create what is missing, and say what exists and differs",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = create_parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="the sidecar's settings; its offline part is used")
    add("--topics", type=Path, metavar="FILE", help="partitions, retention and the like; by default those of the wheel")
    add("--partitions", type=int, metavar="N", help="of each new topic; by default those of requests, or the file's")
    add("--replicas", type=int, metavar="N", help=f"of each new topic; by default {REPLICAS_USUAL}, or all brokers")
    add("--dry-run", action="store_true", help="create nothing, and say what would be")
    create_parser.set_defaults(run=_create)


def _create(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = load_settings(options.config, environment)
    if settings.offline is None:
        raise SettingsError(f"{options.config} has no offline part, so there is no Kafka to create topics on")
    for name in ("partitions", "replicas"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise SettingsError(f"--{name} must be >= 1, not {number}")
    wish = Wish(
        rules=_rules(options.topics),
        partitions=options.partitions,
        replicas=options.replicas,
        dry_run=options.dry_run,
    )
    return asyncio.run(_told(settings.offline, wish))


def _rules(path: Path | None) -> TopicRules:
    if path is None:
        return topic_rules(data.read("topics.yaml"), "topics.yaml")
    try:
        return topic_rules(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8") from None


async def _told(settings: OfflineSettings, wish: Wish) -> int:
    """Print one line per finding; return 1 if one of them is FAILED."""
    try:
        findings = await created(settings, wish)
    except LogError as error:
        raise LogError(f"Kafka at {settings.bootstrap_servers}: {error}") from None
    for verdict, finding in findings:
        print(f"{verdict:8} {finding}")
    return int(any(verdict == "FAILED" for verdict, _ in findings))


async def created(settings: OfflineSettings, wish: Wish) -> list[Finding]:
    """Create what is missing; say of each topic what became of it. Raises LogError, and SettingsError before that."""
    wanted_topics(settings, wish.rules, 1)  # what the file lacks is said before Kafka is asked
    hear_aiokafka()
    admin = AIOKafkaAdminClient(**client_options(settings))
    refused: dict[str, str] = {}
    try:
        async with call(settings.call_timeout_s):
            await admin.start()
            cluster = await look(admin, names(settings), wish.rules.keys())
        plan = TopicPlan.of(settings, wish, cluster)
        if plan.missing and not wish.dry_run:
            async with call(settings.call_timeout_s):
                refused = await create(admin, plan.missing, plan.replicas)
    finally:
        await admin.close()
    return [plan.finding(each, refused, dry_run=wish.dry_run) for each in plan.wanted]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicPlan:
    """What is wanted beside what the cluster has."""

    cluster: Cluster
    wanted: tuple[WantedTopic, ...]
    least: int  # how many partitions the topic of requests has, or will have: the others need as many
    replicas: int  # of each new topic

    @classmethod
    def of(cls, settings: OfflineSettings, wish: Wish, cluster: Cluster) -> TopicPlan:
        """Return the plan: new topics have the partitions that are asked for, and never fewer than requests has."""
        requests = cluster.topics.get(settings.requests_topic)
        if requests is None:
            partitions = least = wish.partitions or wish.rules.partitions
        else:
            least = requests.partitions
            partitions = max(least, wish.partitions or least)
        wanted = tuple(wanted_topics(settings, wish.rules, partitions))
        replicas = wish.replicas or min(REPLICAS_USUAL, cluster.brokers)
        return cls(cluster=cluster, wanted=wanted, least=least, replicas=replicas)

    @property
    def missing(self) -> list[WantedTopic]:
        """Return what the cluster does not have."""
        return [each for each in self.wanted if each.name not in self.cluster.topics]

    def finding(self, topic: WantedTopic, refused: Mapping[str, str], *, dry_run: bool) -> Finding:
        """Say what became of one topic."""
        if (found := self.cluster.topics.get(topic.name)) is not None:
            return self._existing(topic, found)
        if topic.name in refused:
            return "FAILED", f"{topic.name}: the broker refuses it: {refused[topic.name]}"
        config = " ".join(f"{key}={value}" for key, value in sorted(topic.config.items()))
        words = f"{topic.name}: {topic.partitions} partitions, {self.replicas} replicas, {config}"
        return "missing" if dry_run else "created", words

    def _existing(self, topic: WantedTopic, found: FoundTopic) -> Finding:
        if found.partitions < self.least:
            return (
                "FAILED",
                f"{topic.name}: has {found.partitions} partitions and needs {self.least}: a result is written to the"
                f" partition that its item came from; kafka-topics.sh --alter --topic {topic.name}"
                f" --partitions {self.least} adds them",
            )
        if different := list(differences(topic, found)):
            return "differs", f"{topic.name}: {', '.join(different)}; kafka-configs.sh changes it"
        return "exists", f"{topic.name}: {found.partitions} partitions, as asked for"
