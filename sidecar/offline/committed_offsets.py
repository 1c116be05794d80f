"""What a group has committed, asked in a way that no answer is taken for what it is not."""

from __future__ import annotations

from collections.abc import Sequence

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.structs import OffsetAndMetadata


async def committed_offsets(
    admin: AIOKafkaAdminClient, group: str, sources: Sequence[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Return what `group` has committed of each source; offset -1 = nothing.

    Raises GroupCoordinatorNotAvailableError where the answer holds no sources: aiokafka (0.14) overlooks an error of
    the whole answer, such as that of a coordinator which still loads its log.
    """
    found: dict[TopicPartition, OffsetAndMetadata] = await admin.list_consumer_group_offsets(
        group, partitions=list(sources)
    )
    if not found.keys() >= set(sources):
        raise GroupCoordinatorNotAvailableError(f"the coordinator of group {group} does not say what is committed yet")
    return found
