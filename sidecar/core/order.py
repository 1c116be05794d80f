"""Who is next inside one lane of one model: by tenant, inside a tenant by deadline, then by arrival."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from sidecar.core.item import Item
from sidecar.core.settings import SchedulerSettings
from sidecar.core.tenants import Account, Tenants


class LaneQueue:
    """The waiting items of one lane of one model. An item that comes back keeps its age, hence its place."""

    __slots__ = ("_tickets", "tenants", "waiting")

    def __init__(self, settings: SchedulerSettings) -> None:
        self.tenants = Tenants(settings)
        self._tickets = count(1)
        self.waiting = 0  # all that wait, also those whose tenant has all the slots it may have now

    def __iter__(self) -> Iterator[Item]:
        """Each waiting item, in no particular order; O(n), for snapshots and for closing."""
        return (item for account in self.tenants for item in account.waiting)

    def eligible(self, *, long: bool = True) -> int:
        """Count those that wait and whose tenant may have slots now. With long=False leave out those that stand behind
        a long prompt."""
        short, other = self.tenants.eligible
        return short + other if long else short

    def head(self, *, long: bool = True) -> Item | None:
        """The next item, left in place; None if nobody may have slots. With long=False no long prompt."""
        account = self.tenants.first(long=long)
        return account.waiting.head() if account else None

    def push(self, item: Item) -> None:
        """`item` waits, at the place that its deadline and its arrival give it inside its tenant."""
        account = self.tenants.of(item) if item.account else self._joined(item)
        item.ticket = next(self._tickets)
        account.waiting.push(item)
        self.waiting += 1
        self.tenants.grew(account)

    def discard(self, item: Item) -> None:
        """`item`, which waits here, waits no more."""
        account = self.tenants.of(item)
        self._take(item, account)
        self.tenants.stirred(account)

    def grant(self, item: Item) -> None:
        """`item`, which waits here, has its slots now."""
        account = self.tenants.of(item)
        self._take(item, account)
        account.began(item)
        self.tenants.stirred(account)

    def finish(self, item: Item) -> None:
        """`item` has given its slots back: its tenant may have others."""
        account = self.tenants.of(item)
        account.in_flight -= 1
        full = account.full
        account.slots -= item.work.slots
        if full:
            self.tenants.stirred(account)

    def gone(self, item: Item) -> None:
        """`item`, which has waited here, is over."""
        self.tenants.of(item).works -= 1

    def _joined(self, item: Item) -> Account:
        account = self.tenants.named(item.work.tenant)
        item.account = account.name
        account.works += 1
        return account

    def _take(self, item: Item, account: Account) -> None:
        item.ticket = 0
        account.waiting.left()
        self.waiting -= 1
