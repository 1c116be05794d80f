"""An answer without what was asked for is no answer."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.structs import OffsetAndMetadata

from sidecar.offline.committed_offsets import committed_offsets

SOURCES = [TopicPartition("t", 0), TopicPartition("t", 1)]


class FakeAdmin:
    def __init__(self, found: dict[TopicPartition, OffsetAndMetadata]) -> None:
        self.found = found

    async def list_consumer_group_offsets(self, _group: str, partitions: list[TopicPartition]) -> Any:
        return {each: self.found[each] for each in partitions if each in self.found}


async def test_what_is_committed_is_told_of_each_source() -> None:
    found = dict.fromkeys(SOURCES, OffsetAndMetadata(3, ""))
    assert await committed_offsets(FakeAdmin(found), "g", SOURCES) == found


@pytest.mark.parametrize("known", [[], SOURCES[:1]])
async def test_a_coordinator_that_still_loads_has_not_said_that_nothing_is_committed(
    known: list[TopicPartition],
) -> None:
    admin = FakeAdmin(dict.fromkeys(known, OffsetAndMetadata(3, "")))
    with pytest.raises(GroupCoordinatorNotAvailableError):
        await committed_offsets(admin, "g", SOURCES)
