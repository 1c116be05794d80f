"""`sidecar submit` and `sidecar offsets`: items onto the requests topic, and what the group has committed of them."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from aiokafka.errors import KafkaError

from sidecar.core.errors import SettingsError
from sidecar.edge.config import load_settings
from sidecar.edge.kafka_client import LogError
from sidecar.edge.kafka_settings import OfflineSettings
from sidecar.edge.offsets import Committed
from sidecar.edge.offsets_command import PartitionOffsets, reset, show
from sidecar.edge.submit import read_lines, submit

Environment = Mapping[str, str]
Answer = TypeVar("Answer")
HEADERS = ("tenant", "job", "deadline", "model")


def register_submit(subparsers: Any) -> None:
    """Add `submit`."""
    parser = subparsers.add_parser(
        "submit",
        help="send the lines of a JSONL file as offline items",
        description="Each line is an item (kafka/item.schema.json). Nothing is sent if one is not a JSON object.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="one item per line")
    _add_where(parser)
    parser.add_argument("--topic", help="instead of the settings' requests_topic")
    parser.add_argument("--tenant", help="whose items these are; fair shares are per tenant")
    parser.add_argument("--job", help="a name to find their results by")
    parser.add_argument("--deadline", metavar="TIME", help="RFC 3339, e.g. 2026-12-01T06:00:00Z")
    parser.add_argument("--model", help="the engine's model, if not the default one")
    parser.set_defaults(run=_submit)


def register_offsets(subparsers: Any) -> None:
    """Add `offsets` with its three actions."""
    parser = subparsers.add_parser("offsets", help="show, decode or reset what the group has committed")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = actions.add_parser("show", help="watermark, holes and lag of each partition")
    _add_where(shown)
    shown.add_argument("--json", action="store_true", help="as JSON, with every hole")
    shown.set_defaults(run=_show)
    decoded = actions.add_parser("decode", help="read the metadata of one committed offset")
    decoded.add_argument("offset", type=int)
    decoded.add_argument("metadata")
    decoded.set_defaults(run=_decode)
    again = actions.add_parser("reset", help="begin elsewhere; what is done above will be done again")
    _add_where(again)
    again.add_argument("--to", required=True, metavar="OFFSET", help="earliest, latest or a number")
    again.add_argument(
        "--partition", type=int, action="append", default=[], metavar="N", help="only this one; repeatable"
    )
    again.set_defaults(run=_reset)


def _add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="the sidecar's settings; its offline part is used")
    parser.add_argument("--bootstrap-servers", metavar="HOST:PORT,…", help="instead of the settings'")


def _where(options: argparse.Namespace, environment: Environment) -> OfflineSettings:
    settings = OfflineSettings()
    if options.config is not None:
        found = load_settings(options.config, environment).offline
        if found is None:
            raise SettingsError(f"{options.config} has no offline part, so there is no Kafka to speak to")
        settings = found
    if options.bootstrap_servers:
        settings = replace(settings, bootstrap_servers=options.bootstrap_servers)
    return settings


def _submit(options: argparse.Namespace, environment: Environment) -> int:
    settings = _where(options, environment)
    if options.topic:
        settings = replace(settings, requests_topic=options.topic)
    headers = {f"x-{name}": value for name in HEADERS if (value := getattr(options, name))}
    count = _run(submit(settings, read_lines(options.file), headers))
    print(f"{count} items sent to {settings.requests_topic}")
    return 0


def _show(options: argparse.Namespace, environment: Environment) -> int:
    places = _run(show(_where(options, environment)))
    if options.json:
        print(json.dumps([_document(each) for each in places], indent=2))
        return 0
    print(f"{'partition':>9} {'watermark':>12} {'holes':>6} {'done above':>10} {'end':>12} {'lag':>8}")
    for each in places:
        watermark = each.begin if each.committed is None else each.committed.watermark
        shown = "none" if each.committed is None else watermark
        holes = 0 if each.committed is None else len(each.committed.holes)
        lag = each.end - watermark
        print(f"{each.partition:>9} {shown:>12} {holes:>6} {each.done_above:>10} {each.end:>12} {lag:>8}")
    return 0


def _decode(options: argparse.Namespace, environment: Environment) -> int:
    del environment
    print(json.dumps(_committed(Committed.decode(options.offset, options.metadata)), indent=2))
    return 0


def _reset(options: argparse.Namespace, environment: Environment) -> int:
    if options.to not in ("earliest", "latest") and not options.to.isdigit():
        raise SettingsError(f"--to must be earliest, latest or an offset, not {options.to!r}")
    for partition, offset in _run(reset(_where(options, environment), options.to, options.partition)).items():
        print(f"partition {partition} begins at {offset}")
    return 0


def _document(place: PartitionOffsets) -> dict[str, Any]:
    committed = None if place.committed is None else _committed(place.committed)
    return {"partition": place.partition, "begin": place.begin, "end": place.end, "committed": committed}


def _committed(committed: Committed) -> dict[str, Any]:
    return {name: getattr(committed, name) for name in ("watermark", "high", "holes", "restarts", "suspect")}


def _run(command: Coroutine[Any, Any, Answer]) -> Answer:
    """What the command gives. Raises LogError if Kafka does not answer."""
    try:
        return asyncio.run(command)
    except (KafkaError, OSError) as error:
        raise LogError(f"Kafka: {error}") from None
