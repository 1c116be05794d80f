"""Topics that do not fit the settings are said with both numbers."""

from __future__ import annotations

import pytest

from sidecar.offline.kafka_errors import LogError
from sidecar.offline.kafka_topics import Topic, Topics
from sidecar.offline.lane_state import Cause
from sidecar.settings.offline import OfflineSettings

REQUESTS = Topic(name="inference.requests", partitions=3, bytes_max=None)


def topics(results: int, dead_letters: int, bytes_max: int | None) -> Topics:
    targets = (("inference.results", results), ("inference.requests.dlq", dead_letters))
    return Topics(
        cluster_id="c",
        requests=REQUESTS,
        targets=tuple(Topic(name=name, partitions=count, bytes_max=bytes_max) for name, count in targets),
    )


def test_topics_that_fit_are_well_whether_their_limit_is_known_or_not() -> None:
    for limit in (None, 1 << 30):
        found = list(topics(3, 4, limit).findings(OfflineSettings()))
        assert [verdict for verdict, _ in found] == ["ok", "ok", "ok"]


def test_a_topic_with_fewer_partitions_or_a_lower_limit_is_named_with_both_numbers() -> None:
    found = list(topics(1, 3, 1_048_588).findings(OfflineSettings()))
    assert [verdict for verdict, _ in found] == ["ok", "FAILED", "warning", "ok", "warning"]
    assert "inference.results has 1 partitions, inference.requests has 3" in found[1][1]
    assert "max.message.bytes 1048588, message_bytes_max asks for 2097152: what is longer becomes a dea" in found[2][1]
    assert "max.message.bytes 1048588, message_bytes_max asks for 2162688: what is longer is cut" in found[4][1]


def test_only_the_partition_without_a_place_for_its_results_waits() -> None:
    narrow = topics(2, 3, None)
    narrow.check(0)
    narrow.check(1)
    with pytest.raises(LogError, match=r"topic inference\.results has 2 partitions") as raised:
        narrow.check(2)
    assert raised.value.cause is Cause.PARTITION_MISSING
