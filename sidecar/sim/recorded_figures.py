"""What a recording itself says of the time that it covers: its own figures, not those of a simulation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar.core.events import (
    Action,
    Arrived,
    Cancelled,
    DeadLetter,
    Dispatch,
    Ended,
    Event,
    Failed,
    Finished,
    Lost,
    Preempt,
    Progressed,
    Reject,
    Stopped,
)
from sidecar.core.item import Item
from sidecar.core.work import GrantKind, Lane, Work
from sidecar.sim.figures import percentiles


@dataclass(slots=True)
class _Alive:
    work: Work
    tokens: int = 0  # kept so far
    running: Dispatch | None = None
    first_token_seen: bool = False


@dataclass(slots=True, eq=False)
class RecordedFigures:
    """Counts what happened. A first token is as late as the tick of the driver that told it, at most 10 ms."""

    ttft_ms: list[float] = field(default_factory=list)
    e2e_ms: list[float] = field(default_factory=list)
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    preemptions: int = 0
    contended: int = 0
    offline_of_contended: int = 0
    offline_tokens: int = 0
    _alive: dict[str, _Alive] = field(default_factory=dict)

    def begin(self, items: Iterable[Item]) -> None:
        """These works are alive when the recording begins."""
        for item in items:
            begun = item.generated_tokens > 0 or item.first_token_s is not None
            self._alive[item.work.id] = _Alive(item.work, item.generated_tokens, first_token_seen=begun)

    def take(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """One more record."""
        match event:
            case Arrived(work=work):
                self._alive[work.id] = _Alive(work)
            case Progressed(first_tokens=works):
                for work_id in works:
                    self._first_token(work_id, now_s)
            case Ended() | Stopped() | Lost():
                over = any(isinstance(each, Finished) and each.work_id == event.work_id for each in actions)
                self._over(now_s, event, over=over)
            case Failed(work_id=work_id) if work_id in self._alive:
                alive = self._alive[work_id]
                alive.running = None
                if alive.work.lane is Lane.ONLINE:
                    self.failed += 1
                    del self._alive[work_id]
            case Cancelled(work_id=work_id) if work_id in self._alive:
                self.cancelled += self._alive.pop(work_id).work.lane is Lane.ONLINE
            case _:
                pass
        for action in actions:
            self._decided(action)

    def _decided(self, action: Action) -> None:
        match action:
            case Dispatch():
                if action.contended:
                    self.contended += 1
                    self.offline_of_contended += action.kind is not GrantKind.ONLINE
                if (alive := self._alive.get(action.work_id)) is not None:
                    alive.running = action
            case Preempt():
                self.preemptions += 1
            case Finished(work_id=work_id, outcome=Reject()):
                alive = self._alive.pop(work_id, None)
                self.refused += alive is not None and alive.work.lane is Lane.ONLINE
            case Finished(work_id=work_id, outcome=DeadLetter()):
                self._alive.pop(work_id, None)
            case _:
                pass

    def _first_token(self, work_id: str, now_s: float) -> None:
        alive = self._alive.get(work_id)
        if alive is not None and not alive.first_token_seen and alive.work.lane is Lane.ONLINE:
            alive.first_token_seen = True
            self.ttft_ms.append(1000 * (now_s - alive.work.arrived_s))

    def _over(self, now_s: float, event: Ended | Stopped | Lost, *, over: bool) -> None:
        """A dispatch is over: the work is `over` with it, or waits with the tokens it keeps."""
        if (alive := self._alive.get(event.work_id)) is None:
            return
        filled = alive.running is not None and alive.running.prompt_tokens is not None  # only the cache: no token
        alive.running = None
        if alive.work.lane is Lane.ONLINE:
            if isinstance(event, Lost):
                self.failed += 1
            else:
                self.e2e_ms.append(1000 * (now_s - alive.work.arrived_s))
            del self._alive[event.work_id]
            return
        if filled:
            return
        alive.tokens += event.output_tokens
        self.offline_tokens += event.output_tokens
        if over:
            del self._alive[event.work_id]
        elif not alive.work.resumable:
            self.offline_tokens -= alive.tokens
            alive.tokens = 0

    def document(self, seconds: float) -> dict[str, Any]:
        """The figures, as those of a simulated run are told."""
        return {
            "online": {
                "n": len(self.e2e_ms),
                "refused": self.refused,
                "cancelled": self.cancelled,
                "failed": self.failed,
                "ttft_ms": percentiles(self.ttft_ms),
                "e2e_ms": percentiles(self.e2e_ms),
            },
            "offline_tokens_per_s": round(self.offline_tokens / seconds, 2) if seconds else 0.0,
            "offline_waiting": sum(
                each.running is None and each.work.lane is Lane.OFFLINE for each in self._alive.values()
            ),
            "preemptions": self.preemptions,
            "contended": self.contended,
            "offline_contended_share": self.offline_of_contended / self.contended if self.contended else None,
        }
