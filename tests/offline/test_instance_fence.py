"""Who has our instance_id: a member of the group, and whether it lives, over a fake client."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import NodeNotReadyError, TransactionalIdAuthorizationFailed

from sidecar.offline.instance_fence import Bump, InstanceFence, Occupant, _DescribeGroupsResponse
from sidecar.settings.offline import OfflineSettings


class FakeClient:
    """One coordinator; every InitProducerId bumps the epoch, whoever asks."""

    def __init__(self) -> None:
        self.members: list[tuple[str, str | None, str, str, bytes, bytes]] = []
        self.epoch = 6
        self.error = 0
        self.lost = 0  # of the next answers

    async def coordinator_lookup(self, _kind: Any, _key: str) -> int:
        return 1

    async def send(self, _node: int, request: Any) -> Any:
        if request.API_KEY == 15:
            group = (0, "sidecar", "Stable", "consumer", "sticky", self.members, 0)
            whole = _DescribeGroupsResponse(0, [group])
            return _DescribeGroupsResponse.decode(whole.encode())
        self.epoch += 1
        if self.lost:
            self.lost -= 1
            raise NodeNotReadyError
        return SimpleNamespace(error_code=self.error, producer_id=9, producer_epoch=self.epoch)


def fence(client: FakeClient) -> InstanceFence:
    return InstanceFence(client, OfflineSettings(instance_id="pod-0"))


async def test_the_member_with_our_instance_id_is_found_by_that_alone() -> None:
    client = FakeClient()
    client.members = [("pod-0-uuid", None, "pod-0", "/10.0.0.1", b"", b""), ("m", "pod-1", "c", "/10.0.0.2", b"", b"")]
    assert await fence(client).occupant() is None
    client.members.append(("n", "pod-0", "sidecar.pod-0", "/10.0.0.7", b"", b""))
    assert await fence(client).occupant() == Occupant(member_id="n", host="/10.0.0.7", client_id="sidecar.pod-0")


async def test_a_bump_in_between_shows_another_process() -> None:
    client = FakeClient()
    ours, theirs = fence(client), fence(client)
    assert [await ours.bump(), await ours.bump()] == [False, False]
    await theirs.bump()
    assert [await ours.bump(), await ours.bump()] == [True, False]


async def test_a_bump_whose_answer_was_lost_shows_nobody() -> None:
    client = FakeClient()
    ours = fence(client)
    await ours.bump()
    client.lost = 1
    with pytest.raises(NodeNotReadyError):
        await ours.bump()
    assert [await ours.bump(), await ours.bump()] == [False, False]


async def test_a_missing_right_is_an_error() -> None:
    client = FakeClient()
    client.error = 53
    with pytest.raises(TransactionalIdAuthorizationFailed):
        await fence(client).bump()


@pytest.mark.parametrize(
    ("before", "after", "follows"),
    [
        (Bump(9, 6), Bump(9, 7), True),
        (Bump(9, 6), Bump(9, 8), False),
        (Bump(9, 32_766), Bump(10, 0), True),
        (Bump(9, 6), Bump(10, 0), False),
    ],
)
def test_an_epoch_follows_the_one_before_it_also_where_the_broker_begins_anew(
    before: Bump, after: Bump, follows: bool
) -> None:
    assert after.follows(before) is follows
