"""Whose turn it is among the tenants of one lane: the virtual token counter of Sheng et al. (OSDI 2024, algorithm 2).

Each tenant has a counter of the service it got, in weighted tokens: a prompt counts when it is dispatched, an output
token when it is streamed. The least counter is next. Who begins to wait is lifted to the least counter of those who
wait, or an hour of silence would be a credit. Of two tenants that wait all the time neither gets more than 2 · max(w_p
· L_in, w_q · M) ahead, where L_in is the longest prompt and M the most output tokens in flight. Nobody pays for a
prompt that is computed again, or a token generated again, because of us; and nothing is refunded.

Counters only grow. So the heaps below may hold old ones: an entry is put right when it surfaces, and an update is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count

from sidecar.core.request import OFFLINE
from sidecar.core.settings import SchedulerSettings, TenantSettings
from sidecar.core.tenant_queue import TenantQueue
from sidecar.core.tracked_request import TrackedRequest

ACCOUNTS_MAX = 4096  # per lane; beyond it idle ones are forgotten, because callers choose their names themselves
EVERYBODY = "everybody"  # has the only account where tenants are not told apart

_HeapEntry = tuple[float, int, int, "Account"]


@dataclass(slots=True, eq=False)
class Account:
    """One tenant in one lane of one model."""

    name: str
    number: int  # of equal counters the older account's is first
    limits: TenantSettings
    input_price: float  # weighted tokens per token
    output_price: float
    waiting: TenantQueue
    counter: float = 0.0
    input_tokens: int = 0  # charged so far
    output_tokens: int = 0
    requests: int = 0  # alive: waiting, backing off or in flight
    in_flight: int = 0
    slots: int = 0  # of those in flight
    ticket: int = 0  # the heap entry that is live; 0 = it is not its turn, now or soon
    long: bool = False  # which heap that is in
    filed_crowding: float = 0.0  # the entry that is live in the heap of `Crowd`; never less than the truth
    eligible: int = 0  # as many of its requests are in the count of that heap

    @property
    def crowding(self) -> float:
        """How many of its requests wait, per weight."""
        return len(self.waiting) / self.limits.weight

    @property
    def full(self) -> bool:
        """True if it has all the slots it may have."""
        return 0 < self.limits.slots_max <= self.slots

    def refuses(self) -> str:
        """Why no further request of it may wait, in words; "" if one may."""
        waiting = self.requests - self.in_flight
        if 0 < self.limits.waiting_max <= waiting:
            return f"{waiting} requests of tenant {self.name} wait already, and {self.limits.waiting_max} may"
        return ""

    def began(self, tracked: TrackedRequest) -> None:
        """`tracked` has its slots. Its prompt is charged with the first dispatch only."""
        self.in_flight += 1
        self.slots += tracked.request.slots
        if not tracked.prompt_charged:
            tracked.prompt_charged = True
            self.input_tokens += tracked.request.prompt_tokens
            self.counter += tracked.request.prompt_tokens * self.input_price


class Crowd:
    """Who has most requests waiting, per weight: a heap whose entries may be too large, and are put right on top."""

    __slots__ = ("_heap", "_prune_at")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Account]] = []
        self._prune_at = 64

    def grew(self, account: Account) -> None:
        """One more request of `account` waits. When one fewer does, nothing need be said."""
        crowding = account.crowding
        if crowding > account.filed_crowding:
            account.filed_crowding = crowding
            heappush(self._heap, (-crowding, account.number, account))
            if len(self._heap) > self._prune_at:
                self._heap = [entry for entry in self._heap if -entry[0] == entry[2].filed_crowding]
                heapify(self._heap)
                self._prune_at = 2 * len(self._heap) + 64

    def largest(self) -> Account | None:
        """The account with the most; of equals the older one. None if nobody waits."""
        while self._heap:
            filed, number, account = self._heap[0]
            if -filed != account.filed_crowding:
                heappop(self._heap)
            elif account.crowding == account.filed_crowding:
                return account
            else:
                account.filed_crowding = account.crowding
                if account.crowding:
                    heapreplace(self._heap, (-account.crowding, number, account))
                else:
                    heappop(self._heap)
        return None


class Tenants:
    """The accounts of one lane of one model, and which of those that wait is next.

    Those whose next prompt is long stand apart, so that they can be passed over while another long one is computed.
    """

    __slots__ = (
        "_accounts",
        "_crowd",
        "_forget_at",
        "_heaps",
        "_last",
        "_numbers",
        "_settings",
        "_tickets",
        "eligible",
        "forgotten",
    )

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._accounts: dict[str, Account] = {}
        self._numbers = count(1)
        self._tickets = count(1)
        self._heaps: tuple[list[_HeapEntry], list[_HeapEntry]] = ([], [])  # next prompt short, long
        self._last: Account | None = None  # the last one whose turn it could have been, and cannot be now
        self._crowd = Crowd()
        self._forget_at = ACCOUNTS_MAX
        self.eligible = [0, 0]  # requests that wait, and whose tenant may have slots, per heap
        self.forgotten = [0, 0]  # input and output tokens of accounts that are gone

    def __iter__(self) -> Iterator[Account]:
        return iter(self._accounts.values())

    def named(self, name: str) -> Account:
        """The account of tenant `name`, new if need be."""
        if not self._settings.tenant_fairness:
            name = EVERYBODY
        account = self._accounts.get(name)
        if account is None:
            if len(self._accounts) >= self._forget_at:
                self._forget()
            account = self._accounts[name] = self._opened(name)
        return account

    def limit(self, tenants: Mapping[str, TenantSettings], tenant_default: TenantSettings) -> None:
        """The weights and limits of all tenants are these from now on. What was charged stays charged."""
        self._settings = replace(self._settings, tenants=tenants, tenant_default=tenant_default)
        for account in self._accounts.values():
            account.limits = self._limits(account.name)
            account.input_price = self._settings.tenant_input_price / account.limits.weight
            account.output_price = self._settings.tenant_output_price / account.limits.weight
            self.grew(account)

    def known(self, name: str) -> Account | None:
        """The account of tenant `name`, if there is one already."""
        return self._accounts.get(name if self._settings.tenant_fairness else EVERYBODY)

    def of(self, tracked: TrackedRequest) -> Account:
        """The account of `tracked`, which has waited here and is not over: no account with requests is ever
        forgotten."""
        return self._accounts[tracked.account]

    def streamed(self, tracked: TrackedRequest, tokens: int) -> None:
        """`tracked` has given so many more tokens. Those that it gave before, and lost since, are not charged again."""
        tracked.streamed_tokens += tokens
        more = tracked.generated_tokens + tracked.streamed_tokens - tracked.charged_tokens
        if more > 0:
            tracked.charged_tokens += more
            account = self._accounts[tracked.account]
            account.output_tokens += more
            account.counter += more * account.output_price

    def largest(self) -> Account | None:
        """Who has most requests waiting, per weight; None if nobody waits."""
        return self._crowd.largest()

    def crowding_with(self, name: str) -> float:
        """How many requests tenant `name` would have waiting, per weight, if one more did."""
        if account := self.known(name):
            return (len(account.waiting) + 1) / account.limits.weight
        return 1 / self._limits(name).weight

    def grew(self, account: Account) -> None:
        """One more request of `account` waits."""
        self._crowd.grew(account)
        self.changed(account)

    def changed(self, account: Account) -> None:
        """Something about who waits or runs in `account` has changed: it is filed where it belongs now."""
        head = None if account.full else account.waiting.head()
        long = head is not None and self._is_long(head)
        self.eligible[account.long] -= account.eligible
        account.eligible = 0 if head is None else len(account.waiting)
        self.eligible[long] += account.eligible
        if head is None:
            if account.ticket:
                account.ticket, self._last = 0, account
        elif not account.ticket or long is not account.long:
            if not account.ticket:
                account.counter = max(account.counter, self._floor())
            account.ticket = next(self._tickets)
            self._push(account, self._heaps[long])
        account.long = long

    def first(self, *, long: bool = True) -> Account | None:
        """Whose turn it is; None if nobody may have slots. With long=False only of those whose next prompt is not."""
        short, other = self._top(self._heaps[False]), self._top(self._heaps[True]) if long else None
        if short is None or other is None:
            return short or other
        return min(short, other, key=lambda account: (account.counter, account.number))

    def _floor(self) -> float:
        """The counter that whoever begins to wait is lifted to."""
        least = self.first() or self._last
        return least.counter if least else 0.0

    @staticmethod
    def _top(heap: list[_HeapEntry]) -> Account | None:
        """The account of the least counter, its entry put right."""
        while heap:
            counter, number, ticket, account = heap[0]
            if ticket != account.ticket:
                heappop(heap)
            elif counter != account.counter:
                heapreplace(heap, (account.counter, number, ticket, account))
            else:
                return account
        return None

    def _push(self, account: Account, heap: list[_HeapEntry]) -> None:
        heappush(heap, (account.counter, account.number, account.ticket, account))
        if len(heap) > 2 * len(self._accounts) + 64:
            heap[:] = [entry for entry in heap if entry[2] == entry[3].ticket]
            heapify(heap)

    def _is_long(self, tracked: TrackedRequest) -> bool:
        """True if the engine would have to compute a long prompt of it in one go."""
        if tracked.request.lane is OFFLINE and tracked.request.splits_prompt:
            return False  # it is sent in chunks
        return 0 < self._settings.long_prompt_tokens < tracked.context_tokens - tracked.cached_tokens

    def _limits(self, name: str) -> TenantSettings:
        settings = self._settings
        return settings.tenants.get(name, settings.tenant_default) if settings.tenant_fairness else TenantSettings()

    def _opened(self, name: str) -> Account:
        settings, limits = self._settings, self._limits(name)
        return Account(
            name=name,
            number=next(self._numbers),
            limits=limits,
            input_price=settings.tenant_input_price / limits.weight,
            output_price=settings.tenant_output_price / limits.weight,
            waiting=TenantQueue(settings),
        )

    def _forget(self) -> None:
        """Half of those that nobody uses are gone, the least served first: most would be lifted past that anyway."""
        idle = sorted((each for each in self if not each.requests), key=lambda each: (each.counter, each.number))
        for account in idle[: (len(idle) + 1) // 2]:
            if account is not self._last:
                self.forgotten[0] += account.input_tokens
                self.forgotten[1] += account.output_tokens
                del self._accounts[account.name]
        self._forget_at = max(ACCOUNTS_MAX, 2 * len(self._accounts))
