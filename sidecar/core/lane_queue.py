"""Who is next inside one lane of one model: by tenant, inside a tenant by deadline, then by arrival."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from sidecar.core.settings import SchedulerSettings
from sidecar.core.tenants import Account, Tenants
from sidecar.core.tracked_request import TrackedRequest


class LaneQueue:
    """The waiting requests of one lane of one model. A request that comes back keeps its age, hence its place."""

    __slots__ = ("_tickets", "tenants", "waiting")

    def __init__(self, settings: SchedulerSettings) -> None:
        self.tenants = Tenants(settings)
        self._tickets = count(1)
        self.waiting = 0  # all that wait, also those whose tenant has all the slots it may have now

    def __iter__(self) -> Iterator[TrackedRequest]:
        """Each waiting request, in no particular order; O(n), for snapshots and for closing."""
        return (tracked for account in self.tenants for tracked in account.waiting)

    def eligible(self, *, long: bool = True) -> int:
        """Count those that wait and whose tenant may have slots now. With long=False leave out those that stand behind
        a long prompt."""
        short, other = self.tenants.eligible
        return short + other if long else short

    def head(self, *, long: bool = True) -> TrackedRequest | None:
        """The next request, left in place; None if nobody may have slots. With long=False no long prompt."""
        account = self.tenants.first(long=long)
        return account.waiting.head() if account else None

    def push(self, tracked: TrackedRequest) -> None:
        """`tracked` waits, at the place that its deadline and its arrival give it inside its tenant."""
        account = self.tenants.of(tracked) if tracked.account else self._joined(tracked)
        tracked.ticket = next(self._tickets)
        account.waiting.push(tracked)
        self.waiting += 1
        self.tenants.grew(account)

    def discard(self, tracked: TrackedRequest) -> None:
        """`tracked`, which waits here, waits no more."""
        account = self.tenants.of(tracked)
        self._take(tracked, account)
        self.tenants.changed(account)

    def dispatch(self, tracked: TrackedRequest) -> None:
        """`tracked`, which waits here, has its slots now."""
        account = self.tenants.of(tracked)
        self._take(tracked, account)
        account.began(tracked)
        self.tenants.changed(account)

    def finish(self, tracked: TrackedRequest) -> None:
        """`tracked` has given its slots back: its tenant may have others."""
        account = self.tenants.of(tracked)
        account.in_flight -= 1
        full = account.full
        account.slots -= tracked.request.slots
        if full:
            self.tenants.changed(account)

    def gone(self, tracked: TrackedRequest) -> None:
        """`tracked`, which has waited here, is over."""
        self.tenants.of(tracked).requests -= 1

    def _joined(self, tracked: TrackedRequest) -> Account:
        account = self.tenants.named(tracked.request.tenant)
        tracked.account = account.name
        account.requests += 1
        return account

    def _take(self, tracked: TrackedRequest, account: Account) -> None:
        tracked.ticket = 0
        account.waiting.left()
        self.waiting -= 1
