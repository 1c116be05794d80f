"""Where a command finds Kafka: the settings file or an address; and how it ends if Kafka does not answer."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from aiokafka.errors import KafkaError

from sidecar.core.errors import SettingsError
from sidecar.offline.kafka_errors import LogError, hear_aiokafka, translated
from sidecar.settings.file import ServeSettings, load_settings
from sidecar.settings.offline import OfflineSettings

Environment = Mapping[str, str]
Answer = TypeVar("Answer")


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where Kafka is."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="the sidecar's settings; its offline part is used")
    parser.add_argument("--bootstrap-servers", metavar="HOST:PORT,…", help="instead of the settings'")


def offline_settings(
    options: argparse.Namespace, environment: Environment
) -> tuple[OfflineSettings, ServeSettings | None]:
    """The offline part, and the whole file if there is one."""
    settings, whole = OfflineSettings(), None
    if options.config is not None:
        whole = load_settings(options.config, environment)
        if whole.offline is None:
            raise SettingsError(f"{options.config} has no offline part, so there is no Kafka to speak to")
        settings = whole.offline
    if options.bootstrap_servers is not None:
        settings = replace(settings, bootstrap_servers=options.bootstrap_servers)
    return settings, whole


def job_settings(options: argparse.Namespace, environment: Environment) -> OfflineSettings:
    """The offline part; the topics of jobs have their usual names where no settings file says otherwise."""
    settings = offline_settings(options, environment)[0]
    if options.config is None:
        settings = replace(settings, jobs_topic="inference.jobs", progress_topic="inference.progress")
    return settings


def next_where(options: argparse.Namespace) -> str:
    """The arguments that say where Kafka is, as the next command needs them."""
    stated = (("--config", options.config), ("--bootstrap-servers", options.bootstrap_servers))
    return "".join(f" {name} {shlex.quote(str(value))}" for name, value in stated if value is not None)


def run(command: Coroutine[Any, Any, Answer]) -> Answer:
    """What the command gives. Raises LogError if Kafka does not answer, with the last cause."""
    hear_aiokafka()
    begun_s = time.monotonic()
    try:
        return asyncio.run(command)
    except (KafkaError, OSError) as error:
        raise LogError(f"Kafka: {translated(error, begun_s)}") from None
