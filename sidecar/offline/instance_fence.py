"""Two processes with one instance_id: the second one finds out before it joins the group, and the first never notices.

Kafka (with this client) does not fence them: each join takes the membership from the other, for ever, without an
error. A member that is seen in the group may also be our own dead predecessor, which Kafka keeps until its session is
over. To tell the two apart, every process bumps the epoch of one transactional id per instance_id, again and again.
Whoever bumps it twice and finds another bump in between knows that somebody else is alive.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.protocol.types import Array, Boolean, Bytes, Int16, Int32, Schema, String

from sidecar.settings.offline import OfflineSettings

EPOCH_LAST = 32_766  # after it the broker gives a new producer id and begins at 0


class _DescribeGroupsResponse(Response):  # type: ignore[misc]  # aiokafka is untyped
    """Version 4: the first that tells instance ids, and newer than aiokafka's."""

    API_KEY = 15
    API_VERSION = 4
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            Array(
                ("error_code", Int16),
                ("group", String("utf-8")),
                ("state", String("utf-8")),
                ("protocol_type", String("utf-8")),
                ("protocol", String("utf-8")),
                (
                    "members",
                    Array(
                        ("member_id", String("utf-8")),
                        ("instance_id", String("utf-8")),
                        ("client_id", String("utf-8")),
                        ("client_host", String("utf-8")),
                        ("member_metadata", Bytes),
                        ("member_assignment", Bytes),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
    )


class _DescribeGroupsStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 15
    API_VERSION = 4
    RESPONSE_TYPE = _DescribeGroupsResponse
    SCHEMA = Schema(("groups", Array(String("utf-8"))), ("include_authorized_operations", Boolean))


class _DescribeGroups(Request[_DescribeGroupsStruct]):  # type: ignore[misc]
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_DescribeGroupsStruct]) -> _DescribeGroupsStruct:
        """The one version that is known here."""
        return request_struct_class([self._group], False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupant:
    """The member of the group that has our instance_id."""

    member_id: str
    host: str  # as the broker sees it
    client_id: str


@dataclass(frozen=True, slots=True)
class Bump:
    """What one bump of the epoch gave."""

    producer_id: int
    epoch: int

    def follows(self, before: Bump) -> bool:
        """True if nobody else has bumped in between."""
        if self.producer_id == before.producer_id:
            return self.epoch == before.epoch + 1
        return self.epoch == 0 and before.epoch >= EPOCH_LAST - 1


class InstanceFence:
    """The questions of one process about its instance_id, over a connected `client`. Raises KafkaError."""

    def __init__(self, client: AIOKafkaClient, settings: OfflineSettings) -> None:
        self._client = client
        self._settings = settings
        self._transactional_id = f"sidecar.{settings.group}.instance.{settings.instance_id}"
        self._last: Bump | None = None

    async def occupant(self) -> Occupant | None:
        """The member with our instance_id, alive or not yet forgotten; None if there is none."""
        node = await self._client.coordinator_lookup(CoordinationType.GROUP, self._settings.group)
        answer = (await self._client.send(node, _DescribeGroups(self._settings.group))).to_object()
        for group in answer["groups"]:
            if group["error_code"]:
                raise for_code(group["error_code"])(self._settings.group)
            for member in group["members"]:
                if member["instance_id"] == self._settings.instance_id:
                    return Occupant(
                        member_id=member["member_id"], host=member["client_host"], client_id=member["client_id"]
                    )
        return None

    async def bump(self) -> bool:
        """The epoch is bumped. True if another process has bumped it since our last time, if that is known."""
        before, self._last = self._last, None  # after a failure nobody knows whether it was bumped
        node = await self._client.coordinator_lookup(CoordinationType.TRANSACTION, self._transactional_id)
        timeout_ms = int(self._settings.transaction_timeout_s * 1000)
        answer = await self._client.send(node, InitProducerIdRequest(self._transactional_id, timeout_ms))
        if answer.error_code:
            raise for_code(answer.error_code)(self._transactional_id)
        self._last = Bump(answer.producer_id, answer.producer_epoch)
        return before is not None and not self._last.follows(before)
