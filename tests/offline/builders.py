"""Records, finished items and owned partitions, as tests of single modules of the offline room need them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.offline.gates import ModelGates
from sidecar.offline.item import ItemRules, Record
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.lane_state import Stated
from sidecar.offline.offsets import Committed
from sidecar.offline.owned_partition import FinishedItem, LaneStats, OwnedPartition
from sidecar.offline.runner import ItemRuns
from sidecar.offline.spans import KafkaSpans
from sidecar.settings.offline import OfflineSettings
from tests.fakes.log import FakeDriver, WordTokens

SETTINGS = OfflineSettings(tick_s=0.001)
NOTHING_DONE = Committed(watermark=0, high=0)


def record(offset: int = 0, value: bytes | None = b'{"id": "1", "prompt": "p"}', **fields: Any) -> Record:
    """One record of partition 0, unless `fields` say otherwise."""
    defaults: dict[str, Any] = {"partition": 0, "timestamp_ms": 1_000, "key": b"key", "headers": ()}
    return Record(topic="inference.requests", offset=offset, value=value, **(defaults | fields))


def of_job(offset: int, job: str, tenant: str = "lab") -> Record:
    """One record of this tenant's job."""
    return record(offset, headers=(("x-tenant", tenant.encode()), ("x-job", job.encode())))


def finished(source: Record, value: bytes = b"result", **fields: Any) -> FinishedItem:
    """What is to be written of this record: a result, unless `fields` say otherwise."""
    headers = (("x-source-offset", str(source.offset).encode()),)
    outgoing = Outgoing(topic="inference.results", key=source.key, value=value, headers=headers)
    defaults: dict[str, Any] = {"outcome": "done", "reason": "", "retries": 0, "output_tokens": 3, "taken_s": 0.0}
    return FinishedItem(record=source, **({"outgoing": outgoing} | defaults | fields))


def owned(
    committed: Committed | None = NOTHING_DONE, settings: OfflineSettings = SETTINGS, number: int = 0
) -> OwnedPartition:
    """A partition that was opened and counted, with this committed; not opened if that is None."""
    partition = OwnedPartition(number, Stated(f"partition {number}", lambda: 0.0))
    if committed is not None:
        partition.begin(committed, 1, settings)
        partition.counted = True
    return partition


def delivered(partition: OwnedPartition, *records: Record) -> None:
    """These records were fetched and taken."""
    assert partition.progress is not None
    for each in records:
        assert partition.progress.deliver(each.offset)
        partition.take(each)


def runs(
    driver: FakeDriver | None = None,
    settings: OfflineSettings = SETTINGS,
    stats: LaneStats | None = None,
    models: Mapping[str, int] | None = None,
) -> ItemRuns:
    """Runs items on a driver that answers at once."""
    rules = ItemRules.of(settings, models or {"tensorrt_llm": 1000}, None)
    spans = KafkaSpans(settings, None, lambda: 0.0)
    return ItemRuns(
        settings, rules, driver or FakeDriver(), WordTokens(), spans, stats or LaneStats(), lambda: 0.0, ModelGates()
    )
