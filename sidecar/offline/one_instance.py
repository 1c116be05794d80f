"""One process per instance_id: the younger of two finds out and waits, the older one goes on.

`instance_fence.py` says how a dead predecessor is told from a living twin.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from sidecar.offline.instance_fence import Occupant
from sidecar.offline.kafka_errors import InstanceInUseError, LogError
from sidecar.offline.lane_state import Cause
from sidecar.offline.pauses import Pauses, wait
from sidecar.settings.offline import OfflineSettings

log = logging.getLogger(__name__)
BEATS_PER_HEARTBEAT = 2  # how often we show that this instance_id is in use
BEATS_AWAITED = 3  # so long a newcomer looks whether a member of its instance_id still lives
FOREIGN_BEATS = 3  # in a row: another process with our instance_id does not only ask, it runs
YOUNG_SESSIONS = 2  # of two processes that run the younger one leaves; after so many session timeouts none is young
DUPLICATE_ASSIGNMENTS = 6  # within one generation and this many seconds: two processes share an instance_id
DUPLICATE_WITHIN_S = 120.0


class Group(Protocol):
    """What this needs of Kafka (`KafkaLog`)."""

    async def occupant(self) -> Occupant | None: ...
    async def bump(self) -> bool: ...


class OneInstance:
    """Knows of one process whether it may run under its instance_id. Without one everything is allowed."""

    def __init__(
        self,
        settings: OfflineSettings,
        pauses: Pauses,
        clock: Callable[[], float],
        on_occupied: Callable[[str], None],
    ) -> None:
        """`on_occupied` hears, in words, who has it."""
        self._settings = settings
        self._pauses = pauses
        self._clock = clock
        self._on_occupied = on_occupied
        self._begun_s: float | None = None  # since when this process has the instance_id
        self._members: set[str] = set()  # our names in the group, of all consumers of this process
        self._assignments: deque[tuple[float, int]] = deque(maxlen=DUPLICATE_ASSIGNMENTS)

    async def wait_until_free(self, group: Group, closing: asyncio.Event) -> None:
        """No other living process has our instance_id. Its dead predecessor's membership may be taken over."""
        looks = 0
        while self._settings.instance_id and not closing.is_set():
            occupant = await group.occupant()
            if occupant is None or occupant.member_id in self._members:
                break
            where = f"instance_id {self._settings.instance_id!r} is in use by host {occupant.host}"
            self._on_occupied(where if looks else f"{where}, or was until a moment ago")
            if not await self._is_alive(group, closing):
                break
            looks += 1
            self._on_occupied(f"{where}; each process needs its own")
            await self._pauses.until(closing, looks, Cause.INSTANCE_IN_USE)
        self._begun_s = self._clock() if self._begun_s is None else self._begun_s
        self._assignments.clear()  # a static member that joins again keeps the generation: that alone proves nothing

    async def _is_alive(self, group: Group, closing: asyncio.Event) -> bool:
        """True if another process with our instance_id shows that it lives, or if we may not look."""
        try:
            await group.bump()
            await wait(closing, BEATS_AWAITED * self._beat_s)
            return await group.bump()
        except LogError as error:
            log.debug("whether another process uses our instance_id cannot be asked: %s", error)
            return True  # then the group's session decides: what is dead is forgotten when it is over

    @property
    def _beat_s(self) -> float:
        return self._settings.heartbeat_s / BEATS_PER_HEARTBEAT

    async def beat(self, group: Group, closing: asyncio.Event) -> None:
        """Shows others that this instance_id is in use. Raises InstanceInUseError if another process runs with it.

        Only the younger one does: a process that waits for us asks now and then, and then only for a moment.
        """
        foreign = 0
        while self._settings.instance_id and not closing.is_set():
            try:
                foreign = foreign + 1 if await group.bump() else 0
            except LogError as error:
                log.debug("our instance_id is not shown to be in use: %s", error)
            if foreign == 1:
                log.warning("another process asks for the instance_id %r of this one", self._settings.instance_id)
            young_s = YOUNG_SESSIONS * self._settings.session_timeout_s
            if foreign >= FOREIGN_BEATS and self._begun_s is not None and self._clock() - self._begun_s < young_s:
                raise self._in_use("another process runs with it")
            await wait(closing, self._beat_s)

    def assigned(self, member_id: str, generation: int) -> InstanceInUseError | None:
        """Note an assignment. An error if they follow one another within one generation: each of two takes it back."""
        self._members.add(member_id)
        self._assignments.append((self._clock(), generation))
        (first_s, first), (last_s, _) = self._assignments[0], self._assignments[-1]
        if len(self._assignments) < DUPLICATE_ASSIGNMENTS or last_s - first_s > DUPLICATE_WITHIN_S:
            return None
        if any(each != first for _, each in self._assignments):
            return None
        return self._in_use(f"assigned {DUPLICATE_ASSIGNMENTS} times within one generation")

    def _in_use(self, why: str) -> InstanceInUseError:
        self._begun_s = None
        self._members.clear()
        return InstanceInUseError(
            f"instance_id {self._settings.instance_id!r} is in use: {why}; each process needs its own"
        )
